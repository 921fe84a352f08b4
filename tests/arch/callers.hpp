// callers.hpp - threads that call functions all the time and look at every result, and the proof that
// they can give: none is in a function whose entry is closed once each has come back from its call.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#include "arch/x86_64/redirect.hpp"
#include "sample.hpp"

namespace arch_test {

// The versions that calls are redirected to.
inline long version_a(long a, long b) { return a * 31 + b * 7 + 1000003; }
inline long version_b(long a, long b) { return a * 17 - b * 3 - 2000003; }

struct Case {
  long a, b, old_result;
};

inline std::vector<Case> cases_of(const Function& function) {
  static constexpr long inputs[][2] = {{0, 0},     {1, 2},  {5, 3},       {-7, 12},
                                       {1000, -1}, {63, 9}, {1 << 20, 5}, {0x7fffff, 31}};
  std::vector<Case> cases;
  for (auto [a, b] : inputs) cases.push_back({a, b, function.call(a, b)});
  return cases;
}

class Callers : public molt::arch::Witness {
 public:
  // `yields`: threads lose the processor between calls, seldom inside of one, where all wait for them.
  Callers(const std::vector<const Function*>& functions, int threads, bool yields = true)
      : yield(yields) {
    for (const Function* function : functions) work_.push_back({function, cases_of(*function)});
    for (int i = 0; i < threads; ++i) {
      threads_.push_back(std::make_unique<Thread>());
      Thread* thread = threads_.back().get();
      thread->runs = std::thread([this, thread, i] { run(*thread, static_cast<std::size_t>(i)); });
    }
  }
  ~Callers() override { stop(); }
  void stop() {
    stop_.store(true, std::memory_order_relaxed);
    for (auto& thread : threads_) {
      if (thread->runs.joinable()) thread->runs.join();
    }
  }

  molt::Status no_thread_blocks_sigtrap() override {
    ++trap_questions;
    return {};
  }
  molt::Status no_thread_within(std::span<const molt::arch::CodeRange>) override {
    ++proofs;
    if (refuse_proof) return molt::fail(EBUSY, "not proven");
    // The entries are closed, and the barrier that goes with it is behind us: who is outside now comes
    // to an int3, who is inside is gone when the number changes.
    for (auto& thread : threads_) {
      std::uint64_t steps = thread->steps.load(std::memory_order_acquire);
      while (steps % 2 == 1 && thread->steps.load(std::memory_order_acquire) == steps)
        sched_yield();
    }
    return {};
  }

  std::uint64_t calls() const {
    std::uint64_t all = 0;
    for (auto& thread : threads_) all += thread->steps.load(std::memory_order_relaxed);
    return all / 2;
  }
  std::atomic<std::uint64_t> wrong{0}, old_results{0}, new_results{0};
  // A starved thread may see one version only for a while: tests go on until both were seen.
  std::atomic<bool> saw_old{false}, saw_new{false};
  bool saw_both() const {
    return saw_old.load(std::memory_order_relaxed) && saw_new.load(std::memory_order_relaxed);
  }
  int proofs = 0, trap_questions = 0;
  bool refuse_proof = false;
  const bool yield;

 private:
  struct Work {
    const Function* function;
    std::vector<Case> cases;
  };
  struct alignas(64) Thread {
    std::thread runs;
    std::atomic<std::uint64_t> steps{0};  // odd: in a function
  };

  void run(Thread& thread, std::size_t start) {
    std::uint64_t olds = 0, news = 0;
    for (std::size_t i = start; !stop_.load(std::memory_order_relaxed); ++i) {
      if (yield && i % 64 == 0) sched_yield();
      const Work& work = work_[i % work_.size()];
      const Case& one = work.cases[i / work_.size() % work.cases.size()];
      std::uint64_t steps = thread.steps.load(std::memory_order_relaxed);
      thread.steps.store(steps + 1, std::memory_order_seq_cst);
      long result = work.function->call(one.a, one.b);
      thread.steps.store(steps + 2, std::memory_order_release);
      if (result == one.old_result) {
        if (olds++ == 0) saw_old.store(true, std::memory_order_relaxed);
      } else if (work.function->recursive || result == version_a(one.a, one.b) ||
                 result == version_b(one.a, one.b)) {
        if (news++ == 0) saw_new.store(true, std::memory_order_relaxed);
      } else if (wrong.fetch_add(1, std::memory_order_relaxed) == 0) {
        std::fprintf(stderr, "%s(%ld, %ld) = %ld, not %ld\n", work.function->name.c_str(), one.a,
                     one.b, result, one.old_result);
      }
    }
    old_results.fetch_add(olds, std::memory_order_relaxed);
    new_results.fetch_add(news, std::memory_order_relaxed);
  }

  std::vector<Work> work_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::atomic<bool> stop_{false};
};

}  // namespace arch_test
