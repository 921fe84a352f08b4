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
// Where to interrupt: in the calls of the last `stepped_levels` levels, after so many instructions.
thread_local long instruction = 0;
thread_local bool reached;
constexpr int stepped_levels = 2;

void go_on_down(int levels) {
  if (levels == stepped_levels && instruction != 0) {
    reached = single_step::interrupt_after(
        instruction, [&] { nest()(levels - 1); }, [] { nest()(0); });
  } else {
    nest()(levels - 1);
  }
}

int one_level(int levels) {
  ++calls;
  if (levels > 0) go_on_down(levels);
  if (instruction == 0) {
    EXPECT_TRUE(layer::has_own_frame());
  }
  return 0;
}

void set_up_once() {
  static bool done = [] {
    layer::set_up();
    nest();
    static molt_callback callback = layer::callback<nest_point>(one_level);
    layer::change(nullptr, layer::create("nest", &callback));
    return true;
  }();
  ASSERT_TRUE(done);
}

// In a new thread each time, which makes `levels` nested calls.
void try_every_instruction(int levels) {
  set_up_once();
  bool again = true;
  for (long n = 1; again; ++n) {
    std::thread([&] {
      calls = 0;
      instruction = n;
      go_on_down(levels);
      instruction = 0;
      again = reached;
      ASSERT_EQ(calls, levels + (reached ? 1 : 0)) << "instruction " << n;
      // The record is whole: the same levels can be had again, and all are left.
      calls = 0;
      go_on_down(levels);
      ASSERT_EQ(calls, levels) << "instruction " << n;
      ASSERT_FALSE(layer::has_own_frame()) << "instruction " << n;
    }).join();
    if (testing::Test::HasFailure()) return;
  }
}

TEST(SignalAnywhere, InTheFirstCallsOfAThread) { try_every_instruction(stepped_levels); }
// 30 frames are a block: threads/record.hpp.
TEST(SignalAnywhere, AtTheEdgeOfABlockOfFrames) { try_every_instruction(31); }
TEST(SignalAnywhere, FarFromAnyEdge) { try_every_instruction(10); }

}  // namespace
