// gate.hpp - each thread's word, which says what version of the functions in transition it takes.
//
// Roles      Threads pass trampolines (site.hpp), which compare the word and nothing else; whatever
//            they do not expect brings the thread to settle(). The agent - one thread at a time, the
//            one that works on the transition (transition.cpp) - reads and writes all words.
// State      For each thread a word in initial-exec TLS: generation of the transition, the side that
//            the thread is on (unpatched, patched), PENDING (it shall look at its own stack at the
//            next trampoline), SWITCHING (the agent looks at it: wait). For the process `control`:
//            the generation, and the side that threads without a word of it take. The design's OLD
//            and NEW are the sides; which is which changes when a transition is reversed.
// Invariants G1 A thread's side changes only while nothing on its stack, nor its next instruction,
//               is in the functions that it leaves: seen by itself (PENDING) or by the agent
//               (SWITCHING).
//            G2 The agent sets SWITCHING before it looks, and a thread never goes past a trampoline
//               with it. So what the agent sees can only become less.
//            G3 The decision is made in a trampoline's own text, which counts as old code, or not at
//               all: settle() only makes the word decided, then the trampoline compares again.
//            G4 Of a word of another generation: until the census is complete the thread is on the
//               side that the transition starts from, afterwards it was born since, and is on the
//               side that it aims at. The thread itself writes that down before it goes on. What it
//               has written stands although the rule has changed meanwhile - it may be one that was
//               there before, with old code on its stack - unless the transition is closed: then it
//               was born since, and begins anew.
//            G6 A transition is over only if, after it was closed, no word is on the other side.
//            G5 The agent marks a thread of another generation only with what newcomers write down
//               themselves at that moment: before the census is complete, or before a reversal.
//            G7 Who is not marked when the census is complete was seen out of all old code after the
//               gates were in place, and has passed none of them since: else it has a word. So it is
//               as good as born since. A reversal makes other code the old one: first all get a mark.
// Order      settle(): word written (locked), then `control` read again. close(): `control` written,
//            heavy_barrier(), then the words read. Forbidden: the thread sees the transition open and
//            the agent misses its word. Model: tests/models/gate.pml.
//            try_switch(): SWITCHING set (locked, by the kernel), then the look. Of a thread asleep
//            its context switch is the partner; of a running one the look proves nothing.
// Progress   A thread waits for the agent's look at itself alone (microseconds), and never for
//            another thread. The last of those that were left tells the agent, which need not guess when
//            to look again. A busy thread has many nested calls for each outermost one, where it can
//            leave. A scan of its own stack tells it where the outermost word lies that holds it; until
//            that is off the stack it looks at this one word. PENDING costs at most few_looks of either
//            kind for each try of the agent; from the eighth try on, which come every 0.1 s then, twice as
//            many for each, up to many_looks, and from there few again. So whoever leaves once in ten
//            thousand calls is met at that, and who never does loses less than a tenth of his time.
// Death      Another thread's word is reached through the kernel (futex operations,
//            process_vm_readv), which answers EFAULT where the memory has gone with its thread. Each
//            operation is framed by get_robust_list(): the thread lived until after it. fork: the
//            child has no agent; a thread that finds SWITCHING in another process than the agent's
//            looks at itself. vfork: the child uses its parent's word, as it uses its stack. Signal
//            handlers use the word of the thread they interrupt.
// Refuses    Threads without a robust list (not made by the C library): unreachable.
// Checked by tests/livepatch, tests/models/gate.pml, tests/torture/livepatch
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.hpp"
#include "base/torture_step.hpp"
#include "threads/own_stack.hpp"

namespace molt::livepatch::gate {

enum class Side : std::uint32_t { unpatched = 0, patched = 1 };
inline Side other(Side side) { return side == Side::patched ? Side::unpatched : Side::patched; }

inline constexpr std::uint32_t side_bit = 1;
inline constexpr std::uint32_t pending_bit = 2;
inline constexpr std::uint32_t switching_bit = 4;
inline constexpr unsigned generation_shift = 3;
inline constexpr unsigned few_looks = 64, many_looks = 1 << 15, patient_tries = 8;

inline std::uint32_t generation_of(std::uint32_t word) { return word >> generation_shift; }
inline Side side_of(std::uint32_t word) { return static_cast<Side>(word & side_bit); }
// What a trampoline of that generation compares the word with.
inline std::uint32_t decided(std::uint32_t generation, Side side) {
  return generation << generation_shift | static_cast<std::uint32_t>(side);
}

// Where the word is, from the thread pointer: negative.
std::ptrdiff_t word_offset();

// --- the agent ----------------------------------------------------------------------------------

// Whether words of other threads can be reached in this process. Once, before the first transition.
Status setup();

// Whether something old is on the calling thread's stack, from `sp` up; `unknown` also if another
// generation or target is asked about by now. `held_at`: threads/own_stack.hpp. Async-signal-safe.
using SelfCheck = threads::Own (*)(std::uint32_t generation, Side target, std::uintptr_t sp,
                                   std::uintptr_t& held_at);
void set_self_check(SelfCheck check);

// So many threads were left by the agent's last try: when as many have changed over by themselves,
// `done` is called, by the last of them. Async-signal-safe.
void await_self_checks(unsigned threads, void (*done)());

// A new transition from one side to the other; its generation. From here on trampolines of that
// generation may be installed, and the census be taken.
std::uint32_t begin(Side from);
// The census is complete: G4.
void seal(Side target);
// The transition goes the other way; the caller then clears what is pending (try_switch does).
void turn(Side target);
// G6: newcomers whose word is of an older rule begin anew from now on. Then look at all words, and
// reopen() if one is on the other side.
void close();
void reopen();
// Trampolines that are still passed lead back to the entry.
void end();

// Of the transition that is under way; 0: none.
std::uint32_t generation();

// Many threads' words, by few system calls.
struct ThreadWord {
  int tid = 0;
  enum State : std::uint8_t { read, gone, unreachable } state = gone;
  std::uint32_t value = 0;

  bool is_of(std::uint32_t generation) const {
    return state == read && generation_of(value) == generation;
  }
  // Of the thread itself or the agent, and not decided for the target.
  bool is_held(std::uint32_t generation, Side target) const {
    return is_of(generation) && value != decided(generation, target);
  }
};
void read_words(std::span<ThreadWord> words);

enum class Mark { marked, young, gone };
// Census: puts a thread on the side that newcomers take now, unless it has a word of this generation
// (G5). young: it is not yet far enough to have called anything, or has no robust list.
Mark mark(int tid, std::uint32_t generation, Side from);

enum class Turned {
  done,         // it is on the target's side
  born,         // it has passed no trampoline since the census: it will take the target's side
  switched,     // by this call
  held,         // may_leave answered no
  gone,         // it is ending
  unreachable,  // it has no robust list
};
// One attempt for one thread. `may_leave` looks at the thread; it is called with the gate closed.
template <class MayLeave>
Turned try_switch(int tid, std::uint32_t generation, Side target, MayLeave&& may_leave);

// The calling thread changes over: it knows itself that nothing of it is in the way.
void leave_self(std::uint32_t generation, Side target);
// Whether it is on the other side.
bool is_held_self(std::uint32_t generation, Side target);

// force: whatever its stack holds.
Turned force(int tid, std::uint32_t generation, Side target);

// Its side in this generation, or -1 (word of another generation, or gone).
int side_now(int tid, std::uint32_t generation);

// In a forked child; async-signal-safe.
void after_fork_child();

#ifdef MOLT_TORTURE_STEPS
// Those that know the rule of before and will write it down when it is another one.
extern std::atomic<int> g_late_newcomers;
#endif

// --- the thread ---------------------------------------------------------------------------------

enum class Settled {
  decided,          // compare again
  stays_unpatched,  // old code was seen on this very stack, so the agent sees it too: no need to
  stays_patched,    // compare
  stale,  // the trampoline is of a transition that is over: go back to the function's entry
};
// Called by a trampoline with the stack pointer that the function would be entered with.
Settled settle(std::uint32_t generation, std::uintptr_t sp);

// --- implementation of the template ----------------------------------------------------------------

// Another thread's word, by operations of the kernel. False: its memory has gone.
std::uint32_t* word_of(int tid);  // null: no such thread, or no robust list
bool read_word(const std::uint32_t* word, std::uint32_t& value);
bool set_bits(std::uint32_t* word, std::uint32_t bits);
bool clear_bits_and_wake(std::uint32_t* word, std::uint32_t bits);
bool exists(int tid);

template <class MayLeave>
Turned try_switch(int tid, std::uint32_t generation, Side target, MayLeave&& may_leave) {
  std::uint32_t* word = word_of(tid);
  if (word == nullptr) return exists(tid) ? Turned::unreachable : Turned::gone;
  std::uint32_t value = 0;
  if (!read_word(word, value)) return Turned::gone;
  if (generation_of(value) != generation) return Turned::born;
  if (value == decided(generation, target)) return Turned::done;
  if (side_of(value) == target) {
    // Left from before a reversal. A self-check that began before it fails on this.
    clear_bits_and_wake(word, pending_bit | switching_bit);
    return read_word(word, value) && value == decided(generation, target) ? Turned::done
                                                                          : Turned::held;
  }
  MOLT_TORTURE_STEP(300);
#ifndef MOLT_MUTATE_NO_GATE
  if (!set_bits(word, switching_bit)) return Turned::gone;  // G2
#endif
  const auto open = [&](std::uint32_t more) { clear_bits_and_wake(word, switching_bit | more); };
  if (word_of(tid) != word) {
    open(0);
    return Turned::gone;
  }
  if (!read_word(word, value)) return Turned::gone;
  if (generation_of(value) != generation) {
    open(0);
    return Turned::born;
  }
  if (side_of(value) == target) {
    open(pending_bit);
    return Turned::done;
  }
  if (may_leave()) {
    MOLT_TORTURE_STEP(300);
    const bool ok =
        target == Side::patched ? set_bits(word, side_bit) : clear_bits_and_wake(word, side_bit);
    if (!ok) return Turned::gone;
    open(pending_bit);
    return Turned::switched;
  }
  set_bits(word, pending_bit);
  open(0);
  return Turned::held;
}

}  // namespace molt::livepatch::gate
