// own_stack.hpp - the calling thread's own stack, word by word. What a running thread can do for who
// asks, from any function, also in a signal handler: it needs no unwinder, no lock and no memory.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "threads/ranges.hpp"

namespace molt::threads {

enum class Own : std::uint8_t { leaves, stays, unknown };

// Whether a word of the calling thread's stack from `sp` on is in the ranges; where it runs on an
// alternate signal stack, of that and of what the signal has interrupted. `unknown` where it is on
// neither, and before find_main_stack() for the first thread. Async-signal-safe; some microseconds.
//
// `held_at` is for who is asked again and again: where the outermost word lay that was found last, 0 in
// the beginning. As long as it is on the stack that the thread runs on, this one word is looked at. So who
// answers `stays` has a word on a stack in use, which everybody else who looks finds too: a gate may take
// the thread to the old version without asking again (tests/models/gate.pml, STALE_WORD).
Own look_at_own_stack(const RangeSet& ranges, std::uintptr_t sp, std::uintptr_t* held_at = nullptr);

// Where the first thread's stack ends. Once, before anybody is asked.
void find_main_stack();

// What one thread posts for all others to read, in signal handlers too.
//
// A reader that is cancelled, or jumps out by a signal handler, leaves its count behind: from there on
// what was posted is leaked, never freed under somebody.
template <class T>
class Posted {
 public:
  // One writer at a time. Null: nothing any more.
  void post(const T* value) {
    const T* old = value_.exchange(value, std::memory_order_seq_cst);
    if (old != nullptr) taken_down_.push_back(old);
    if (readers_.load(std::memory_order_seq_cst) != 0) return;
    for (const T* each : taken_down_) delete each;
    taken_down_.clear();
  }

  // f(const T*) on what is posted now, null if nothing is; it stays while f runs.
  template <class F>
  auto read(F&& f) {
    // Pairs with post(): either it sees this count, or this sees its value.
    readers_.fetch_add(1, std::memory_order_seq_cst);
    auto result = f(value_.load(std::memory_order_seq_cst));
    readers_.fetch_sub(1, std::memory_order_release);
    return result;
  }

 private:
  std::atomic<const T*> value_{nullptr};
  std::atomic<unsigned> readers_{0};
  std::vector<const T*> taken_down_;
};

}  // namespace molt::threads
