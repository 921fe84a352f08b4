// In which order callbacks are called.
#include "fixture.hpp"

namespace {

class Order : public HookTest {
 protected:
  void SetUp() override { log_calls(); }
  std::string call_first() {
    log_.take();
    EXPECT_EQ(on_first(0), 0);
    return log_.take();
  }
};

TEST_F(Order, LoadOrder) {
  load_all({"c", "a", "d", "b"});
  EXPECT_EQ(call_all(), "c a d b");
}

TEST_F(Order, ALoadedAgainComesLast) {
  load_all({"a", "b"});
  ASSERT_TRUE(is(unload("a"), 0));
  ASSERT_TRUE(is(load("a"), 0));
  EXPECT_EQ(call_all(), "b a");
}

TEST_F(Order, ADisabledOneKeepsItsPlace) {
  load_all({"a", "b", "c"});
  EXPECT_EQ(molt_disable("b"), 0);
  EXPECT_EQ(call_all(), "a c");
  EXPECT_EQ(molt_enable("b"), 0);
  EXPECT_EQ(call_all(), "a b c");
}

TEST_F(Order, ASuccessorKeepsThePlace) {
  load_all({"a", "b", "c"});
  ASSERT_TRUE(is(replace("a", "a_2"), 0));
  EXPECT_EQ(call_all(), "a b c");
}

TEST_F(Order, FirstAndLast) {
  load_all({"tail", "a", "head", "b"});
  EXPECT_EQ(call_all(), "head a b tail");
}

TEST_F(Order, AListBeforeTheOthers) {
  load_all({"a", "b", "c", "d"});
  EXPECT_EQ(molt_hook_set_order("hook.all", "c,a"), 0);
  EXPECT_EQ(call_all(), "c a b d");
  EXPECT_EQ(call_first(), "a b c d") << "another hook";
  EXPECT_EQ(molt_hook_set_order("hook.all", nullptr), 0);
  EXPECT_EQ(call_all(), "a b c d");
}

TEST_F(Order, AListDoesNotMoveFirstAndLast) {
  load_all({"tail", "a", "head", "b"});
  EXPECT_EQ(molt_hook_set_order("hook.all", "tail,b,a,head"), 0);
  EXPECT_EQ(call_all(), "head b a tail");
}

TEST_F(Order, UnknownNamesAreKept) {
  load_all({"a", "b"});
  EXPECT_EQ(molt_hook_set_order("hook.all", "nobody,d,b,c"), 0);
  EXPECT_EQ(call_all(), "b a");
  load_all({"c", "d"});
  EXPECT_EQ(call_all(), "d b c a");
}

TEST_F(Order, OfDuplicatesTheFirstCounts) {
  load_all({"a", "b", "c"});
  EXPECT_EQ(molt_hook_set_order("hook.all", "c,b,c,b"), 0);
  EXPECT_EQ(call_all(), "c b a");
}

TEST_F(Order, OfAllHooks) {
  load_all({"a", "b", "c"});
  EXPECT_EQ(molt_hook_set_order(nullptr, "c,b"), 0);
  EXPECT_EQ(call_all(), "c b a");
  EXPECT_EQ(call_first(), "c b a");
  EXPECT_EQ(molt_hook_set_order("hook.first", "b"), 0);
  EXPECT_EQ(call_all(), "c b a");
  EXPECT_EQ(call_first(), "b a c") << "a hook's own list stands before that of all";
  EXPECT_EQ(molt_hook_set_order(nullptr, "a"), 0);
  EXPECT_EQ(call_first(), "a b c") << "a new list for all replaces those of single hooks";
  EXPECT_EQ(molt_hook_set_order(nullptr, nullptr), 0);
  EXPECT_EQ(call_all(), "a b c");
}

TEST_F(Order, LoadOrderForOneHookOnly) {
  load_all({"a", "b"});
  EXPECT_EQ(molt_hook_set_order(nullptr, "b"), 0);
  EXPECT_EQ(molt_hook_set_order("hook.first", nullptr), 0);
  EXPECT_EQ(call_first(), "a b");
  EXPECT_EQ(call_all(), "b a");
}

TEST_F(Order, UnknownHook) {
  EXPECT_TRUE(is(molt_hook_set_order("hook.nowhere", "a"), -ENOENT, {"hook.nowhere"}));
}

TEST_F(Order, BeforeAnythingIsAttached) {
  EXPECT_EQ(molt_hook_set_order("hook.all", "b,a"), 0);
  EXPECT_TRUE(on_all.empty());
  load_all({"a", "b"});
  EXPECT_EQ(call_all(), "b a");
}

}  // namespace
