// Exceptions do not leave a module: the callback counts as having given a certain result.
#include <stdexcept>

#include "fixture.hpp"

namespace {

void throw_exception() { throw std::runtime_error("from a callback"); }
void throw_number() { throw 42; }

class Exceptions : public HookTest, public testing::WithParamInterface<void (*)()> {
 protected:
  void SetUp() override {
    board().call = [this](const Call& call) {
      log_.add(call.module);
      if (std::string("a") == call.module) GetParam()();
      return call.argument;
    };
    load_all({"a", "b"});
  }
};

TEST_P(Exceptions, FailOpenAsksTheNext) {
  EXPECT_EQ(on_open(3), 3);
  EXPECT_EQ(log_.take(), "a b");
  EXPECT_EQ(on_open(4), 4) << "the other's answer";
}

TEST_P(Exceptions, FailClosedAnswersForAll) {
  EXPECT_EQ(on_closed(3), -EACCES);
  EXPECT_EQ(log_.take(), "a");
}

TEST_P(Exceptions, VoidHooksGoOn) {
  on_all(1);
  EXPECT_EQ(log_.take(), "a b");
  on_void_closed(1);
  EXPECT_EQ(log_.take(), "a b");
}

TEST_P(Exceptions, TheDefaultMayBeNo) {
  EXPECT_EQ(on_unanimous(1), 5) << "counts as the default, a yes";
  EXPECT_EQ(log_.take(), "a b");
  EXPECT_EQ(on_only_first(1), 9);
  EXPECT_EQ(on_by_name.call_named("a", 1), 9);
}

TEST_P(Exceptions, LeaveNothingBehind) {
  for (int i = 0; i < 200; ++i) {
    EXPECT_EQ(on_closed(3), -EACCES);
    EXPECT_EQ(on_closed.call_named("a", 3), -EACCES);
  }
  EXPECT_TRUE(is(unload("a"), 0)) << "it seems to be entered still";
  unloaded("a");
  EXPECT_EQ(on_closed(3), 3);
}

// The exception ends in the innermost callback; the outer ones do not notice.
TEST_P(Exceptions, Nested) {
  board().call = [this](const Call& call) {
    if (call.argument > 0) return on_closed(call.argument - 1) == -EACCES ? 77 : 1;
    GetParam()();
    return 0;
  };
  EXPECT_EQ(on_open(1), 77);
  EXPECT_EQ(on_open(0), 3);
}

INSTANTIATE_TEST_SUITE_P(Kinds, Exceptions, testing::Values(throw_exception, throw_number),
                         [](const auto& kind) {
                           return kind.param == throw_exception ? "std_exception" : "other";
                         });

}  // namespace
