// look.hpp - looking at sleeping threads, sixteen at a time. Inside threads/; residency.hpp is for
// callers and has the invariants (Y1..).
#pragma once

#include <cstddef>
#include <span>

#include "arch/x86_64/scan.hpp"
#include "threads/census.hpp"
#include "threads/procfs.hpp"
#include "threads/ranges.hpp"
#include "threads/residency.hpp"

namespace molt::threads {

// The thread that waits for the look: it will not leave inspect() before we are done, so its stack
// is what lies above its frame, whatever it does below.
struct Asker {
  int tid = 0;
  const void* frame = nullptr;
};

// Whether the run count is read now, or later by settle(), for many threads at once.
enum class Settle : bool { now, later };

// findings[i] for threads[i]. With Settle::later a finding of `out` is provisional.
void look_at_all(Census& census, std::span<Thread* const> threads, const RangeSet& ranges,
                 const Asker& asker, Settle settle, Finding* findings,
                 const Foreseen& foreseen = {});

// After a provisional `out`: whether the thread has not run since its count was last read, which was
// before the snapshot. Sets is_gone.
bool settle(Thread& thread);

// A scan of copied memory: what words are in the ranges, where signals have interrupted what.
class Scan {
 public:
  Scan(const RangeSet& ranges, Finding& finding, std::uintptr_t sp,
       const Testimony* testimony = nullptr)
      : ranges_(ranges), finding_(finding), testimony_(testimony), sp_(sp) {
    if (ranges.empty()) return;
    interval_.low = ranges.masked_low() ^ RangeSet::mask;
    interval_.length = (ranges.masked_high() ^ RangeSet::mask) - interval_.low;
  }

  // One word that is not on the stack.
  void word(std::uintptr_t value, const char* reason, bool certain);
  // Who has not begun has the address of what it was started for on no stack.
  void start_of(const Thread& thread) {
    const std::uintptr_t routine = thread.start_routine ^ RangeSet::mask;
    if (!ranges_.is_entry(routine)) word(routine, "it was started to run there", false);
  }
  // [address, address + 8 * count) of the thread's stack; the copy lies in its cache lines as the
  // original does.
  void words(const std::uint64_t* copy, std::size_t count, std::uintptr_t address);
  // Copies and scans; false: it could not be read.
  [[nodiscard]] bool memory(Census& census, std::uintptr_t begin, std::uintptr_t end);

  // Own stack from sp on, and from where a signal handler on another stack has interrupted it.
  // Null: all read; otherwise why not.
  [[nodiscard]] const char* own_stack(Census& census, Extent stack);
  // The thread's sp is not on its own stack: on an alternate signal stack, if that can be proven.
  [[nodiscard]] const char* other_stack(Census& census, Extent stack);
  // A thread of which no stack is known.
  [[nodiscard]] const char* any_stack(Census& census);

  struct Interrupted {
    std::uintptr_t sp;
    std::uintptr_t frame;  // of the signal
    Extent alternate;      // the alternate stack in force
  };
  static constexpr std::size_t most_interrupted = 16;
  std::span<const Interrupted> interrupted() const { return {interrupted_, interrupted_count_}; }
  bool too_many() const { return too_many_; }

 private:
  void signal_state(std::uintptr_t address);

  const RangeSet& ranges_;
  Finding& finding_;
  const Testimony* const testimony_;
  arch::Interval interval_{0, 0};
  std::uintptr_t sp_;
  Interrupted interrupted_[most_interrupted];
  std::size_t interrupted_count_ = 0;
  bool too_many_ = false;
};

// The kernel's copy of our own memory: memory that is not there any more is an error, not a fault.
bool copy_memory(void* to, std::uintptr_t from, std::size_t bytes);

}  // namespace molt::threads
