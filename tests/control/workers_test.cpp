// The threads that operations run on.
#include "control/workers.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>

#include <atomic>
#include <iterator>
#include <memory>

#include "base/fd.hpp"
#include "client.hpp"
#include "threads/residency.hpp"

using molt::control::Workers;
using test::eventually;

namespace {

struct Gate {
  std::atomic<bool> is_open{false};
  std::atomic<int> inside{0};
  void pass() {
    inside.fetch_add(1, std::memory_order_acq_rel);
    while (!is_open.load(std::memory_order_acquire)) sched_yield();
    inside.fetch_sub(1, std::memory_order_acq_rel);
  }
  bool holds(int n) { return inside.load(std::memory_order_acquire) == n; }
};

TEST(Workers, AreNamedAndTakeNoSignals) {
  Workers workers({});
  ASSERT_TRUE(workers.start());
  std::atomic<bool> is_done{false};
  char name[16] = {};
  int blocked = 0;
  bool is_worker = false;
  workers.submit([&] {
    prctl(PR_GET_NAME, name);
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    for (const int signal : {SIGINT, SIGTERM, SIGUSR1, SIGCHLD, SIGPROF, SIGALRM, SIGRTMIN}) {
      blocked += sigismember(&mask, signal);
    }
    is_worker = workers.is_worker();
    is_done.store(true, std::memory_order_release);
  });
  EXPECT_TRUE(eventually([&] { return is_done.load(std::memory_order_acquire); }));
  EXPECT_STREQ(name, "molt-worker");
  EXPECT_EQ(blocked, 7);
  EXPECT_TRUE(is_worker);
  EXPECT_FALSE(workers.is_worker());
  sigset_t mine;
  pthread_sigmask(SIG_SETMASK, nullptr, &mine);
  EXPECT_FALSE(sigismember(&mine, SIGTERM)) << "the starter's own mask is as it was";
  workers.stop();
}

#if !defined(__SANITIZE_THREAD__)  // whose frames leave many words on the stacks that are looked at
// What a task held is destroyed where an idle worker stands: by a free() that a module has replaced, say.
char code[4096];
[[gnu::noinline, gnu::no_sanitize("address")]] void leave_words() {
  volatile std::uintptr_t words[256];
  for (volatile std::uintptr_t& word : words) word = reinterpret_cast<std::uintptr_t>(code) + 16;
}

TEST(Workers, AnIdleOneHasNothingOfItsLastTask) {
  Workers workers({1, 10'000});
  ASSERT_TRUE(workers.start());
  std::atomic<bool> is_done{false};
  const auto end = [&](const Workers*) {
    leave_words();
    is_done.store(true, std::memory_order_release);
  };
  workers.submit([held = std::shared_ptr<const Workers>(&workers, end)] {});
  EXPECT_TRUE(eventually([&] { return is_done.load(std::memory_order_acquire); }));
  molt::threads::RangeSet ranges;
  ranges.add(reinterpret_cast<std::uintptr_t>(code),
             reinterpret_cast<std::uintptr_t>(std::end(code)));
  molt::threads::ProofOptions options;
  options.deadline = molt::Deadline::in_ms(20'000);
  const auto proof = molt::threads::prove_out(ranges, options);
  ASSERT_TRUE(proof);
  EXPECT_TRUE(proof->out()) << proof->holders[0].name << ": " << proof->holders[0].reason;
  workers.stop();
}
#endif

TEST(Workers, BlockedOnesHoldUpNobody) {
  Workers workers({8, 10'000});
  ASSERT_TRUE(workers.start());
  Gate gate;
  for (int i = 0; i < 7; ++i) workers.submit([&] { gate.pass(); });
  EXPECT_TRUE(eventually([&] { return gate.holds(7); }));
  std::atomic<bool> is_done{false};
  workers.submit([&] { is_done.store(true, std::memory_order_release); });
  EXPECT_TRUE(eventually([&] { return is_done.load(std::memory_order_acquire); }));
  gate.is_open.store(true, std::memory_order_release);
  workers.stop();
}

TEST(Workers, AreBoundedAndTheRestWaits) {
  Workers workers({3, 10'000});
  ASSERT_TRUE(workers.start());
  Gate gate;
  std::atomic<int> done{0};
  for (int i = 0; i < 10; ++i) {
    workers.submit([&] {
      gate.pass();
      done.fetch_add(1, std::memory_order_relaxed);
    });
  }
  EXPECT_TRUE(eventually([&] { return gate.holds(3); }));
  EXPECT_EQ(workers.count(), 3);
  gate.is_open.store(true, std::memory_order_release);
  EXPECT_TRUE(eventually([&] { return done.load(std::memory_order_relaxed) == 10; }));
  workers.stop();
}

TEST(Workers, IdleOnesEndButOne) {
  Workers workers({16, 5});
  ASSERT_TRUE(workers.start());
  Gate gate;
  for (int i = 0; i < 8; ++i) workers.submit([&] { gate.pass(); });
  EXPECT_TRUE(eventually([&] { return gate.holds(8); }));
  EXPECT_EQ(workers.count(), 9);
  gate.is_open.store(true, std::memory_order_release);
  EXPECT_TRUE(eventually([&] { return workers.count() == 1; }));
  std::atomic<bool> is_done{false};
  workers.submit([&] { is_done.store(true, std::memory_order_release); });
  EXPECT_TRUE(eventually([&] { return is_done.load(std::memory_order_acquire); }));
  workers.stop();
}

TEST(Workers, StopWaitsForWhatRunsAndDropsTheRest) {
  Workers workers({1, 10'000});
  ASSERT_TRUE(workers.start());
  std::atomic<bool> is_running{false};
  std::atomic<bool> is_over{false};
  std::atomic<bool> was_second_run{false};
  workers.submit([&] {
    is_running.store(true, std::memory_order_release);
    for (int i = 0; i < 1000; ++i) sched_yield();
    is_over.store(true, std::memory_order_release);
  });
  EXPECT_TRUE(eventually([&] { return is_running.load(std::memory_order_acquire); }));
  workers.submit([&] { was_second_run.store(true, std::memory_order_release); });
  workers.stop();
  EXPECT_TRUE(is_over.load(std::memory_order_acquire));
  EXPECT_EQ(workers.count(), 0);
}

// W1: what work opens is open for the thread that started the pool.
TEST(Workers, ShareTheStartersDescriptors) {
  Workers workers({4, 10'000});
  ASSERT_TRUE(workers.start());
  Gate gate;
  for (int i = 0; i < 2; ++i) workers.submit([&] { gate.pass(); });  // so that others are made
  EXPECT_TRUE(eventually([&] { return gate.holds(2); }));
  std::atomic<int> made{-1};
  workers.submit([&] { made.store(eventfd(7, EFD_CLOEXEC), std::memory_order_release); });
  EXPECT_TRUE(eventually([&] { return made.load(std::memory_order_acquire) >= 0; }));
  const molt::Fd fd(made.load(std::memory_order_acquire));
  eventfd_t value = 0;
  EXPECT_EQ(eventfd_read(fd.get(), &value), 0);
  EXPECT_EQ(value, 7u);
  gate.is_open.store(true, std::memory_order_release);
  workers.stop();
}

}  // namespace
