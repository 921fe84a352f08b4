// self_proof.hpp - a thread that runs without a pause looks at its own stack as it passes a hook.
//
// Nobody else can look at such a thread but by chance: a sample of it is taken anywhere, and the words
// that earlier calls have left between deep frames look like return addresses. Where it passes a hook
// its stack is shallow, and it is looked at from there.
//
// Roles      One proof at a time asks (residency.cpp); threads that pass answer; the census thread
//            listens.
// State      The question: an epoch and the ranges. Per thread, in its record: tid and epoch of its
//            last answer `out`, in one word.
// Invariants S1 An answer with the epoch of a question was given after it was asked, by a thread that
//               had that number then.
//            S2 A question is asked after the listing that names the thread whom an answer is taken
//               for, and that thread still lived when the answer was read: so it is its own.
// Order      listing -> ask -> [thread: read the question -> own stack -> answer] -> hear -> alive?
// Progress   Passing takes one load while nobody asks. A look takes some microseconds, less than one
//            where the same word is in the way again; a thousand looks for each question, at most.
//            Lock-free and async-signal-safe.
// Death      A record that is given back forgets its answer before its tid (record.cpp). fork: nobody
//            asks in the child.
// Checked by tests/threads/self_proof_test.cpp, threads.finds.NO_OWN_LOOK, tests/torture
#pragma once

#include <atomic>
#include <cstdint>

#include "threads/ranges.hpp"

namespace molt::threads {

// 0: nobody asks.
extern std::atomic<std::uint32_t> self_proof_epoch;

void answer_self_proof(std::uint32_t epoch);

// Where hooks are passed, once the thread has a record.
inline void pass() {
  const std::uint32_t epoch = self_proof_epoch.load(std::memory_order_relaxed);
  if (epoch != 0) [[unlikely]]
    answer_self_proof(epoch);
}

// The right to ask. Not to be had (false) while another proof has it.
class SelfProof {
 public:
  SelfProof();  // blocks, once, as find_main_stack() does
  ~SelfProof();
  SelfProof(const SelfProof&) = delete;
  SelfProof& operator=(const SelfProof&) = delete;
  explicit operator bool() const { return may_ask_; }

  // From now on answers are to this question. After a listing (S2).
  void ask(const RangeSet& ranges);
  // f(tid) for everybody who has answered it with `out`.
  template <class F>
  void hear(F&& f) const;

 private:
  bool may_ask_;
  std::uint32_t epoch_ = 0;
};

}  // namespace molt::threads

#include "threads/record.hpp"

namespace molt::threads {

template <class F>
void SelfProof::hear(F&& f) const {
  if (epoch_ == 0) return;
  for (Record* record = registry(); record != nullptr; record = record->next) {
    const std::uint64_t answer = __atomic_load_n(&record->out, __ATOMIC_ACQUIRE);
    if (answer >> 32 == epoch_) f(static_cast<int>(answer & 0xffff'ffff));
  }
}

}  // namespace molt::threads
