// How the answers of several callbacks make one.
#include <map>

#include "fixture.hpp"

namespace {

class Rules : public HookTest {
 protected:
  // Loads a, b and c, which answer so.
  void answer(int a, int b, int c) {
    answers_ = {{"a", a}, {"b", b}, {"c", c}};
    board().call = [this](const Call& call) {
      log_.add(call.module);
      return answers_.at(call.module);
    };
    if (on_all.empty()) load_all({"a", "b", "c"});
  }
  std::map<std::string, int> answers_;
};

TEST_F(Rules, NothingAttachedAnswersTheDefault) {
  on_all(1);
  EXPECT_EQ(on_first(1), 0);
  EXPECT_EQ(on_first_7(1), 7);
  EXPECT_EQ(on_unanimous(1), 5);
  EXPECT_EQ(on_last(1), -EOPNOTSUPP);
  EXPECT_EQ(on_only_first(1), 9);
  EXPECT_EQ(on_by_name.call_named("a", 1), 9);
  EXPECT_EQ(on_first.call_named("a", 1), 0);
  EXPECT_TRUE(on_all.empty());
}

TEST_F(Rules, All) {
  answer(0, 0, 0);
  on_all(1);
  EXPECT_EQ(log_.take(), "a b c");
  EXPECT_FALSE(on_all.empty());
}

TEST_F(Rules, FirstStopsAtOneThatIsNotTheDefault) {
  answer(0, -3, 4);
  EXPECT_EQ(on_first(1), -3);
  EXPECT_EQ(log_.take(), "a b");
  answer(0, 0, 0);
  EXPECT_EQ(on_first(1), 0);
  EXPECT_EQ(log_.take(), "a b c");
}

TEST_F(Rules, FirstWithAnotherDefault) {
  answer(7, 0, 4);
  EXPECT_EQ(on_first_7(1), 0);
  EXPECT_EQ(log_.take(), "a b");
  answer(7, 7, 7);
  EXPECT_EQ(on_first_7(1), 7);
  EXPECT_EQ(log_.take(), "a b c");
}

TEST_F(Rules, UnanimousStopsAtTheFirstNo) {
  answer(1, 2, 3);
  EXPECT_EQ(on_unanimous(1), 5) << "a yes is the default, not what the callbacks said";
  EXPECT_EQ(log_.take(), "a b c");
  answer(1, 0, 3);
  EXPECT_EQ(on_unanimous(1), 0);
  EXPECT_EQ(log_.take(), "a b");
  answer(-4, 1, 1);
  EXPECT_EQ(on_unanimous(1), 0);
  EXPECT_EQ(log_.take(), "a");
}

TEST_F(Rules, LastGoesOnAfterZero) {
  answer(-EOPNOTSUPP, 0, -EOPNOTSUPP);
  EXPECT_EQ(on_last(1), 0);
  EXPECT_EQ(log_.take(), "a b c");
  answer(0, -EPERM, 0);
  EXPECT_EQ(on_last(1), -EPERM);
  EXPECT_EQ(log_.take(), "a b") << "it stops at one that is neither the default nor zero";
  answer(0, -EOPNOTSUPP, 6);
  EXPECT_EQ(on_last(1), 6);
  EXPECT_EQ(log_.take(), "a b c");
  answer(-EOPNOTSUPP, -EOPNOTSUPP, -EOPNOTSUPP);
  EXPECT_EQ(on_last(1), -EOPNOTSUPP);
}

TEST_F(Rules, OnlyFirst) {
  answer(9, 2, 3);
  EXPECT_EQ(on_only_first(1), 9) << "the default is an answer too";
  EXPECT_EQ(log_.take(), "a");
  EXPECT_EQ(molt_hook_set_order("hook.only_first", "b"), 0);
  EXPECT_EQ(on_only_first(1), 2);
  EXPECT_EQ(log_.take(), "b");
  EXPECT_EQ(molt_disable("b"), 0);
  EXPECT_EQ(on_only_first(1), 9);
  EXPECT_EQ(log_.take(), "a");
  EXPECT_EQ(molt_enable("b"), 0);
}

TEST_F(Rules, ByName) {
  answer(1, 2, 3);
  EXPECT_EQ(on_by_name.call_named("b", 1), 2);
  EXPECT_EQ(log_.take(), "b");
  EXPECT_EQ(on_by_name.call_named("c", 1), 3);
  EXPECT_EQ(on_by_name.call_named("nobody", 1), 9);
  EXPECT_EQ(on_by_name.call_named("", 1), 9);
  log_.take();
  EXPECT_EQ(molt_disable("b"), 0);
  EXPECT_EQ(on_by_name.call_named("b", 1), 9);
  EXPECT_EQ(log_.take(), "");
  EXPECT_EQ(molt_enable("b"), 0);
}

TEST_F(Rules, ANamedCallOfAnotherRule) {
  answer(1, 2, 3);
  EXPECT_EQ(on_first.call_named("c", 1), 3);
  EXPECT_EQ(log_.take(), "c");
}

TEST_F(Rules, TheArgumentArrives) {
  load_all({"a"});
  EXPECT_EQ(on_first(12345), 12345);
  EXPECT_EQ(on_by_name.call_named("a", -12345), -12345);
}

}  // namespace
