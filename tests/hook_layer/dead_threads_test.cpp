// Records of dead threads are reaped while threads are born that take them over: a live thread's
// frames must never vanish under its callback.
#include <gtest/gtest.h>
#include <sched.h>
#include <molt/host.hpp>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "layer.hpp"

namespace {

struct brief_point : molt::hook_point<int(int)> {
  static constexpr const char* name = "test.brief";
  static constexpr int default_result = 0;
};

std::atomic<long> calls, lost;

int watch_own_frame(int) {
  ++calls;
  for (int i = 0; i < 50; ++i) {
    if (!layer::has_own_frame()) {
      ++lost;
      break;
    }
    if (i % 16 == 0) sched_yield();
  }
  return 0;
}

TEST(DeadThreads, ReapingNeverTouchesALiveThread) {
  layer::set_up();
  static molt::hook<brief_point> hook;
  static molt_callback callback = layer::callback<brief_point>(watch_own_frame);
  layer::change(nullptr, layer::create("brief", &callback));

  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      while (!stop) layer::reap_dead();
    });
  }
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      while (!stop) std::thread([] { hook(1); }).join();
    });
  }
  const auto five = std::chrono::seconds(5);
  std::this_thread::sleep_for(five);  // tidy: sleep-ok how long it goes on is the subject
  stop = true;
  for (std::thread& t : threads) t.join();
  EXPECT_GT(calls, 100);
  EXPECT_EQ(lost, 0) << "of " << calls << " callbacks";
}

}  // namespace
