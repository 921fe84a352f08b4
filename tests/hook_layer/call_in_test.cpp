// hooks::call_in(): while it is on, every call comes by threads::pass(), and answers what it always does.
#include <gtest/gtest.h>
#include <molt/host.hpp>

#include "hook/registry.hpp"
#include "layer.hpp"
#include "threads/self_proof.hpp"

namespace {

struct used_point : molt::hook_point<int(int)> {
  static constexpr const char* name = "test.used";
  static constexpr int default_result = 0;
};
struct unused_point : molt::hook_point<int(int)> {
  static constexpr const char* name = "test.unused";
  static constexpr int default_result = 7;
};

int answer(int argument) { return argument; }

bool came_by(molt::threads::SelfProof& proof) {
  bool came = false;
  proof.hear([&](int) { came = true; });
  return came;
}

TEST(CallIn, EveryCallComesBy) {
  layer::set_up();
  static molt::hook<used_point> used;
  static molt::hook<unused_point> unused;
  static molt_callback callback = layer::callback<used_point>(answer);
  layer::Owner* owner = layer::create("answers", &callback);
  layer::change(nullptr, owner);

  molt::threads::SelfProof proof;
  ASSERT_TRUE(proof);
  const molt::threads::RangeSet nowhere;
  const auto passes = [&](auto& hook, int expected) {
    proof.ask(nowhere);
    EXPECT_EQ(hook(3), expected);
    return came_by(proof);
  };
  EXPECT_FALSE(passes(used, 3));
  EXPECT_FALSE(passes(unused, 7));
  for (int i = 0; i < 3; ++i) {
    molt::hooks::call_in(true);
    EXPECT_TRUE(passes(used, 3));
    EXPECT_TRUE(passes(unused, 7));
    const auto shown = molt::hooks::find("test.used");
    ASSERT_TRUE(shown);
    EXPECT_EQ(shown->callbacks.size(), 1u);
    molt::hooks::call_in(false);
    EXPECT_FALSE(passes(used, 3));
    EXPECT_FALSE(passes(unused, 7));
  }
  layer::change(owner, nullptr);
}

// What is changed meanwhile is as it shall be, and comes by too.
TEST(CallIn, ChangesMeanwhile) {
  layer::set_up();
  static molt::hook<used_point> hook;
  static molt_callback callback = layer::callback<used_point>(answer);
  layer::Owner* owner = layer::create("later", &callback);
  molt::threads::SelfProof proof;
  const molt::threads::RangeSet nowhere;
  molt::hooks::call_in(true);
  layer::change(nullptr, owner);
  proof.ask(nowhere);
  EXPECT_EQ(hook(5), 5);
  EXPECT_TRUE(came_by(proof));
  layer::change(owner, nullptr);
  EXPECT_EQ(hook(5), 0);
  molt::hooks::call_in(false);
  EXPECT_EQ(hook(5), 0);
  layer::change(nullptr, owner);
  proof.ask(nowhere);
  EXPECT_EQ(hook(5), 5);
  EXPECT_FALSE(came_by(proof));
  layer::change(owner, nullptr);
}

}  // namespace
