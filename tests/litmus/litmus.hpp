// litmus.hpp - asks the processor one question: two pinned threads run a few memory accesses again
// and again, and the outcomes are counted.
//
// A forbidden outcome must never be seen. So that "never" means something, each test has a control
// that leaves out what forbids it and must show the outcome, and a count of interesting outcomes
// (the two sides did overlap), which must be above zero.
#pragma once

#include <gtest/gtest.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <thread>
#include <vector>

namespace litmus {

// Far from all else: cells that share a line hide the reordering that is looked for.
struct alignas(256) Cell {
  std::atomic<std::uint64_t> value{0};
};

inline std::vector<int> cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  std::vector<int> list;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) list.push_back(cpu);
  }
  return list;
}

inline void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

inline bool membarrier_ready() {
  return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
}
inline void membarrier() { syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0); }
inline void compiler_barrier() { std::atomic_signal_fence(std::memory_order_seq_cst); }

// Up to about limit times 128 cycles, in steps of one, from a small generator of the thread's own. The
// `pause` instruction would be far too coarse on some processors: 140 cycles, where the window that is
// looked for is a few wide.
class Jitter {
 public:
  explicit Jitter(std::uint64_t seed) : state_(seed * 2 + 1) {}
  void wait(std::uint64_t limit) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    for (std::uint64_t n = (state_ >> 33) % (128 * limit + 1); n != 0; --n) asm volatile("");
  }

 private:
  std::uint64_t state_;
};

struct Outcome {
  std::uint64_t rounds = 0, forbidden = 0, interesting = 0;
};

enum class Verdict { boring, interesting, forbidden };

// Rounds of left() beside right(), each on a CPU of its own, started together; judge() sees the
// results of both after each round and resets the cells. Ends after `seconds`, or as soon as
// `enough` says so.
inline Outcome run(const std::function<void()>& left, const std::function<void()>& right,
                   const std::function<Verdict()>& judge, double seconds,
                   const std::function<bool(const Outcome&)>& enough = {}) {
  std::vector<int> on = cpus();
  Cell go, done;
  std::atomic<bool> stop{false};
  std::thread other([&] {
    pin(on[1]);
    for (std::uint64_t round = 1;; ++round) {
      while (go.value.load(std::memory_order_acquire) != round) {
        if (stop.load(std::memory_order_relaxed)) return;
      }
      right();
      done.value.store(round, std::memory_order_release);
    }
  });
  cpu_set_t before;
  CPU_ZERO(&before);
  sched_getaffinity(0, sizeof before, &before);
  pin(on[0]);
  Outcome outcome;
  auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  for (;;) {
    ++outcome.rounds;
    go.value.store(outcome.rounds, std::memory_order_release);
    left();
    while (done.value.load(std::memory_order_acquire) != outcome.rounds) {
    }
    Verdict verdict = judge();
    outcome.forbidden += verdict == Verdict::forbidden;
    outcome.interesting += verdict == Verdict::interesting;
    if (outcome.rounds % 256 == 0 &&
        (std::chrono::steady_clock::now() > end || (enough && enough(outcome)))) {
      break;
    }
  }
  stop.store(true, std::memory_order_relaxed);
  other.join();
  sched_setaffinity(0, sizeof before, &before);
  return outcome;
}

// For controls: until the outcome was seen a few times, at most so long.
inline constexpr double control_seconds_max = 10;
inline bool seen(const Outcome& outcome) { return outcome.forbidden >= 10; }
// For the real thing, which must not see it.
inline constexpr double question_seconds = 2;

inline void expect_seen(const Outcome& outcome) {
  std::printf("control: forbidden %lu, rounds %lu\n", outcome.forbidden, outcome.rounds);
  EXPECT_GT(outcome.forbidden, 0u)
      << "in " << outcome.rounds << " rounds: this processor does not show what the test looks for";
}
inline void expect_never(const Outcome& outcome) {
  std::printf("forbidden %lu, interesting %lu, rounds %lu\n", outcome.forbidden,
              outcome.interesting, outcome.rounds);
  EXPECT_EQ(outcome.forbidden, 0u) << "in " << outcome.rounds << " rounds";
  EXPECT_GT(outcome.interesting, 0u)
      << "the two sides never overlapped in " << outcome.rounds << " rounds";
}

}  // namespace litmus

#define LITMUS_NEEDS_TWO_CPUS()                                                                  \
  if (litmus::cpus().size() < 2) {                                                               \
    GTEST_SKIP() << "one CPU: two threads never run at the same time, no reordering is visible"; \
  }                                                                                              \
  static_assert(true)
