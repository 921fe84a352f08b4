// A signal handler that calls a hook may interrupt a hook call at any instruction: the thread's first
// one, which registers it; one that needs another block of frames; one far from such edges.
#include <gtest/gtest.h>
#include <molt/host.hpp>

#include <thread>

#include "layer.hpp"
#include "single_step.hpp"

namespace {

struct nest_point : molt::hook_point<int(int)> {
  static constexpr const char* name = "test.nest";
  static constexpr int default_result = 0;
};

molt::hook<nest_point>& nest() {
  static molt::hook<nest_point> hook;
  return hook;
}

thread_local int calls;

int go_down(int levels) {
  ++calls;
  if (levels > 0) nest()(levels - 1);
  EXPECT_TRUE(layer::has_own_frame());
  return 0;
}

void set_up_once() {
  static bool done = [] {
    layer::set_up();
    nest();
    static molt_callback callback = layer::callback<nest_point>(go_down);
    layer::change(nullptr, layer::create("nest", &callback));
    return true;
  }();
  ASSERT_TRUE(done);
}

// Interrupts a call nested `depth` deep, in a new thread each time, at every instruction.
void try_every_instruction(int depth) {
  set_up_once();
  bool reached = true;
  for (long n = 1; reached; ++n) {
    std::thread([&] {
      calls = 0;
      reached = single_step::interrupt_after(
          n, [&] { nest()(depth); }, [] { nest()(0); });
      ASSERT_EQ(calls, depth + 1 + (reached ? 1 : 0)) << "instruction " << n;
      // The record is whole again: as many levels as before can be had, and all are left.
      calls = 0;
      nest()(depth);
      ASSERT_EQ(calls, depth + 1) << "instruction " << n;
      ASSERT_FALSE(layer::has_own_frame()) << "instruction " << n;
    }).join();
    if (testing::Test::HasFailure()) return;
  }
}

TEST(SignalAnywhere, InTheFirstCallOfAThread) { try_every_instruction(0); }
TEST(SignalAnywhere, AtTheEdgeOfABlockOfFrames) {
  try_every_instruction(29);
  try_every_instruction(30);
}

}  // namespace
