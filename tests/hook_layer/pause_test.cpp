// While a paused hand-over has the old version's state, no callback of that version runs: whatever a
// caller was doing when the pause began, at every instruction of its walk.
#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>
#include <molt/host.hpp>

#include <atomic>
#include <thread>

#include "layer.hpp"
#include "single_step.hpp"

namespace {

struct pause_point : molt::hook_point<int(int)> {
  static constexpr const char* name = "test.pause";
  static constexpr int default_result = 0;
};

molt::hook<pause_point>& hook() {
  static molt::hook<pause_point> h;
  return h;
}

std::atomic<bool> handing_over;
std::atomic<long> calls_in_hand_over;

int old_version(int) {
  calls_in_hand_over += handing_over;
  return 0;
}

molt_owner* old_owner() {
  static molt_owner* owner = [] {
    // Gens stay closed without membarrier: each call takes the walk that is to be tried.
    layer::set_up(false);
    hook();
    static molt_callback callback = layer::callback<pause_point>(old_version);
    molt_owner* o = layer::create("pausing", &callback);
    layer::change(nullptr, o);
    return o;
  }();
  return owner;
}

TEST(Pause, BeginsAnywhereInACall) {
  molt_owner* owner = old_owner();
  bool reached = true;
  for (long n = 1; reached; ++n) {
    calls_in_hand_over = 0;
    std::atomic<bool> stopped{false}, go_on{false};
    std::thread caller([&] {
      hook()(0);  // registered: that path is another test's
      reached = single_step::interrupt_after(
          n, [] { hook()(0); },
          [&] {
            stopped = true;
            while (!go_on) sched_yield();
          });
      stopped = true;
    });
    while (!stopped) sched_yield();
    layer::begin_pause(owner);
    // A caller that is inside makes the hand-over give up; so does one whose frame may mean that.
    if (layer::drain(owner, 20)) {
      handing_over = true;
      go_on = true;
      usleep(5000);  // tidy: sleep-ok a state that tells nobody when it changes
      handing_over = false;
    }
    layer::end_pause(owner);
    go_on = true;
    caller.join();
    ASSERT_EQ(calls_in_hand_over, 0) << "the pause began after instruction " << n;
  }
}

// The frame that the handler finds may be one that its thread has not validated yet.
TEST(Pause, SignalAnywhereInACallThatWaits) {
  molt_owner* owner = old_owner();
  bool reached = true;
  for (long n = 1; reached; ++n) {
    calls_in_hand_over = 0;
    std::atomic<bool> ready{false}, go{false};
    std::thread caller([&] {
      hook()(0);
      ready = true;
      while (!go) sched_yield();
      reached = single_step::interrupt_after(
          n, [] { hook()(0); }, [] { hook()(0); });
    });
    while (!ready) sched_yield();
    layer::begin_pause(owner);
    ASSERT_TRUE(layer::drain(owner, 1000));
    handing_over = true;
    go = true;
    usleep(5000);  // tidy: sleep-ok a state that tells nobody when it changes
    handing_over = false;
    layer::end_pause(owner);
    caller.join();
    ASSERT_EQ(calls_in_hand_over, 0) << "the signal came after instruction " << n;
  }
}

}  // namespace
