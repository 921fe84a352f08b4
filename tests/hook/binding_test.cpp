// What a callback binds to: hooks by name and signature, C hosts and C modules, very many callbacks.
#include <algorithm>
#include <numeric>

#include "c_host.h"
#include "fixture.hpp"

namespace {

class Binding : public HookTest {};

TEST_F(Binding, CalledBeforeAnythingWasAttached) {
  EXPECT_EQ(on_first(1), 0);
  EXPECT_TRUE(on_first.empty());
  load_all({"a"});
  EXPECT_EQ(on_first(1), 1);
  EXPECT_FALSE(on_first.empty());
}

// Every library of a program may have its own object of a point.
TEST_F(Binding, TwoObjectsAreOneHook) {
  molt::hook<first_point> early;
  EXPECT_EQ(early.registered(), 0);
  EXPECT_EQ(early(1), 0);
  load_all({"a"});
  molt::hook<first_point> late;
  EXPECT_EQ(late.registered(), 0);
  EXPECT_EQ(early(4), 4);
  EXPECT_EQ(late(4), 4);
  EXPECT_EQ(on_first(4), 4);
  EXPECT_EQ(molt_disable("a"), 0);
  EXPECT_EQ(early(4) + late(4) + on_first(4), 0);
  EXPECT_EQ(molt_enable("a"), 0);
  load_all({"b"});
  log_calls();
  for (auto* hook : {&early, &late, &on_first}) {
    (*hook)(1);
    EXPECT_EQ(log_.take(), "a b");
  }
  EXPECT_TRUE(is(unload("a"), 0));
  unloaded("a");
  for (auto* hook : {&early, &late, &on_first}) {
    (*hook)(1);
    EXPECT_EQ(log_.take(), "b");
  }
}

TEST_F(Binding, AnObjectThatGoesTakesNothingWithIt) {
  load_all({"a"});
  { molt::hook<first_point> other; }
  EXPECT_EQ(on_first(4), 4);
}

// Same name, other signature.
struct other_first_point : molt::hook_point<int(long)> {
  static constexpr const char* name = "hook.first";
  static constexpr int default_result = 6;
};
TEST_F(Binding, ASecondSignatureIsRefused) {
  load_all({"a"});
  molt::hook<other_first_point> other;
  EXPECT_EQ(other.registered(), -EEXIST);
  EXPECT_EQ(other(1), 6) << "it stays empty, and works";
  EXPECT_TRUE(other.empty());
  EXPECT_EQ(on_first(4), 4);
}

TEST_F(Binding, WrongSignatureIsRefusedWithBoth) {
  EXPECT_TRUE(is(load("wrong"), -EINVAL, {"hook.first", "i32(i64)", "i32(i32)"}));
  EXPECT_EQ(on_first(1), 0);
  EXPECT_TRUE(is(unload("wrong"), -ENOENT));
}

TEST_F(Binding, MissingHookIsRefused) {
  EXPECT_TRUE(is(load("missing"), -ENOENT, {"hook.nowhere"}));
  EXPECT_TRUE(is(unload("missing"), -ENOENT));
}

TEST_F(Binding, MissingOptionalHookIsAccepted) { load_all({"optional"}); }

// The hook of a library that was loaded after the module and has gone again.
struct passing_point : molt::hook_point<int(long)> {
  static constexpr const char* name = "hook.nowhere";
};
TEST_F(Binding, AHookThatIsNoMoreIsMissing) {
  {
    molt::hook<passing_point> passing;
    ASSERT_TRUE(is(load("missing"), 0));
    EXPECT_EQ(passing(3), 3);
    EXPECT_TRUE(is(unload("missing"), 0));
  }
  EXPECT_TRUE(is(load("missing"), -ENOENT, {"hook.nowhere"}));
}

// ---- C

class InC : public HookTest {
 protected:
  void SetUp() override { ASSERT_EQ(c_host_register(), 0); }
  void TearDown() override {
    for (const char* module : {"in_c", "for_c"}) molt_unload(module, 0, -1);
    c_host_unregister();
  }
};

TEST_F(InC, Modules) {
  ASSERT_TRUE(is(load("in_c"), 0));
  EXPECT_EQ(on_first(21), 42);
  EXPECT_EQ(c_host_call(21), 63);
  EXPECT_TRUE(is(unload("in_c"), 0));
  EXPECT_EQ(on_first(21), 0);
}

TEST_F(InC, Hosts) {
  int count = 0;
  EXPECT_EQ(c_host_call(1), C_HOST_DEFAULT);
  EXPECT_EQ(c_host_sum(1, &count), 0);
  EXPECT_EQ(count, 0);
  ASSERT_TRUE(is(load("for_c"), 0));
  ASSERT_TRUE(is(load("in_c"), 0));
  EXPECT_EQ(c_host_call(1), 3) << "the first gave the default";
  EXPECT_EQ(c_host_call(-1), 100);
  EXPECT_EQ(c_host_sum(1, &count), 43);
  EXPECT_EQ(count, 2);
  EXPECT_EQ(molt_hook_set_order("hook.c", "in_c"), 0);
  EXPECT_EQ(c_host_call(-1), -3);
  EXPECT_EQ(c_host_call_named("for_c", -1), 100);
  EXPECT_EQ(c_host_call_named("nobody", -1), C_HOST_DEFAULT);
  EXPECT_EQ(c_host_call_named("for_c", 13), C_HOST_THREW);
  EXPECT_TRUE(is(unload("in_c"), 0));
  EXPECT_EQ(c_host_call(-1), 100);
}

TEST_F(InC, RefusedHooks) {
  EXPECT_EQ(c_host_register_other_signature(), -EEXIST);
  EXPECT_EQ(c_host_register_malformed(), -EINVAL);
}

// An optional callback of a module that knows more than its host.
TEST_F(InC, WithoutTheHost) {
  c_host_unregister();
  ASSERT_TRUE(is(load("in_c"), 0));
  EXPECT_EQ(on_first(21), 42);
  ASSERT_EQ(c_host_register(), 0);
}

// ---- Very many callbacks

class Many : public HookTest {
 protected:
  void SetUp() override {
    board().call = [this](const Call& call) {
      if (stop_at_ == call.argument) meanwhile_();
      (call.module[4] == '_' && call.module[0] == 'm' ? others_ : numbers_)
          .push_back(call.argument);
      return 0;
    };
  }
  static std::vector<int> up_to(int n) {
    std::vector<int> numbers(static_cast<std::size_t>(n));
    std::iota(numbers.begin(), numbers.end(), 0);
    return numbers;
  }
  std::vector<int> call() {
    numbers_.clear();
    others_.clear();
    on_many(-1);
    return numbers_;
  }
  int stop_at_ = -2;
  std::function<void()> meanwhile_;
  std::vector<int> numbers_, others_;
};

TEST_F(Many, SeventyInOrder) {
  load_all({"many"});
  EXPECT_EQ(call(), up_to(70));
  load_all({"many_tail", "many_head"});
  EXPECT_EQ(call(), up_to(70));
  EXPECT_EQ(others_.size(), 2u);
}

// Those that stand on one line have no order of their own, but each is called once.
TEST_F(Many, OnOneLine) {
  load_all({"same_line"});
  std::vector<int> first = call(), sorted = first;
  std::sort(sorted.begin(), sorted.end());
  EXPECT_EQ(sorted, up_to(40));
  EXPECT_EQ(call(), first);
}

class ManyChanged : public Many, public testing::WithParamInterface<int> {};

// The chain changes in the middle: the rest is called exactly once, by the general walk.
TEST_P(ManyChanged, InTheMiddle) {
  load_all({"many_head", "many", "many_tail"});
  stop_at_ = GetParam();
  meanwhile_ = [this] {
    EXPECT_TRUE(is(unload("many_tail"), 0));
    unloaded("many_tail");
  };
  EXPECT_EQ(call(), up_to(70));
  EXPECT_EQ(others_.size(), 1u) << "the last one went before it was reached";
}

TEST_P(ManyChanged, OnOneLineInTheMiddle) {
  load_all({"same_line", "many_tail"});
  std::vector<int> before = call();
  stop_at_ = before[static_cast<std::size_t>(GetParam()) % before.size()];
  meanwhile_ = [this] { EXPECT_EQ(molt_hook_set_order("hook.many", "many_tail"), 0); };
  EXPECT_EQ(call(), before) << "some were called twice or not at all";
}

INSTANTIATE_TEST_SUITE_P(At, ManyChanged, testing::Values(0, 14, 15, 16, 17, 63, 64, 65, 69),
                         testing::PrintToStringParamName());

}  // namespace
