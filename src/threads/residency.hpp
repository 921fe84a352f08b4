// residency.hpp - is a thread, at any moment after the question, able to return into or run on in
// these code ranges? The proof under unloading, unpatching and freeing.
//
//     RangeSet ranges;
//     for (each executable segment of the module) ranges.add(begin, end);
//     // from here on nobody can enter: hooks detached, gates closed, barrier done
//     ProofOptions options;
//     options.deadline = Deadline::in_ms(5000);
//     options.own_frame = __builtin_frame_address(0);
//     auto proof = prove_out(ranges, options);
//     if (proof && proof->out()) munmap(...);
//
// The caller closes every way in first ("gate before snapshot"): the proof is about leaving. What a
// thread has read but not yet called (a function pointer in a register) is an entry, not a return,
// and is the concern of whoever closes the ways in; so are suspended fibers, which are on no thread's
// stack: the memory audit finds both kinds of word.
//
// Roles      The asker, any thread; the census thread (census.hpp), which looks.
// State      None between calls, but for what the census keeps.
// Invariants Y1 `out` only if, at some moment after the call began, no word that the thread could
//               return through lay in the ranges: stack from SP to its end, system-call arguments,
//               PC, and the registers where a sample has them.
//            Y2 The thread did not run between the first byte of the snapshot and the last byte
//               scanned: same run count, read before and after both.
//            Y3 What is not understood is `unknown`, never `out`.
//            Y4 A sleeping thread is not touched: nothing it or its program can observe changes, its
//               run count neither.
//            Y5 prove_out: every thread that lives at the end of the call was looked at after it
//               began, or was born of threads that were out before.
//            Y6 The proof's own words are in no range: ranges are kept masked (ranges.hpp), and the
//               asking thread's frames are unwound, or scanned from own_frame on.
//            Y7 Memory that vanishes while it is read ends the look as `unknown`: it is copied by the
//               kernel, never dereferenced.
//            Y8 Who was started in the ranges is inside from birth to end: it may not have begun, with
//               that address on no stack. Where that cannot be told, who may not have begun is unknown
//               (start.hpp).
// Order      gate closed (caller) -> heavy_barrier (caller) -> run count -> registers -> stack -> run
//            count. For a sleeper the context switch is the barrier. tests/models/residency.pml.
// Progress   A sleeper is decided in one look. A running thread is sampled by perf_event, if the
//            system lets us, or looked at again until it sleeps; bounded by the deadline. Nothing
//            here makes a thread run that would not.
// Death      A thread that ends is out. fork in between: the child's copy of the asker does not exist.
// Refuses    See Verdict::unknown and Finding::reason.
// Checked by tests/threads, tests/models (residency), tests/torture (residency mutations)
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/futex.hpp"
#include "base/result.hpp"
#include "threads/census.hpp"
#include "threads/ranges.hpp"

namespace molt::threads {

enum class Verdict : std::uint8_t {
  out,      // proven
  inside,   // a word in the ranges was found; stale words are possible unless `certain`
  unknown,  // not proven; `reason` says why
};

enum class Activity : std::uint8_t { sleeping, running, gone };

// What one look at one thread has found. Trivially copyable.
struct Finding {
  int tid = 0;
  std::uint64_t serial = 0;  // of the thread in the census; 0: not known
  char name[16] = {};        // empty for `out`
  Verdict verdict = Verdict::unknown;
  Activity activity = Activity::sleeping;
  // inside: its program counter is in the ranges, or the word is where only a live return address
  // can be. Otherwise the word may be a stale one.
  bool certain = false;
  const char* reason = "";  // static text, one clause: "a return address on its stack"

  std::uintptr_t word = 0;     // the address in the ranges, ^ RangeSet::mask
  std::uintptr_t at = 0;       // where on the stack it lies; 0: in a register
  std::size_t depth = 0;       // bytes from SP to there
  std::size_t hits = 0;        // words in the ranges
  std::uintptr_t sp = 0;       // 0 if unknown
  std::uintptr_t pc = 0;       // ^ RangeSet::mask
  long syscall = -1;           // the system call it sleeps in; -1: none, or unknown
  std::int64_t asleep_ns = 0;  // slept at least so long; 0: unknown or running

  std::uintptr_t address() const { return word ^ RangeSet::mask; }
};

// One look at one thread, on the census thread (inspect()). Never waits: a running thread is
// `unknown`, Activity::running. About 1 us and what its stack takes; the thread does not notice.
// `own_frame`: if the thread is asleep because it asked for this very look, where its stack is
// scanned from (see ProofOptions).
Finding look(Census& census, Thread& thread, const RangeSet& ranges,
             const void* own_frame = nullptr);

// The same for many at once, which takes fewer system calls: findings[i] of threads[i]. `asker` is the
// thread that waits for this, if it is among them, and own_frame its.
void look_at_each(Census& census, std::span<Thread* const> threads, const RangeSet& ranges,
                  int asker, const void* own_frame, Finding* findings);

// What will be asked next, while a look is taken for something else. Who is asleep and out of that too is
// out of it as long as it does not run, which one read says (is_clean): Y2 holds over both.
struct Foreseen {
  const RangeSet* ranges = nullptr;
  std::uint64_t number = 0;  // never used for other ranges
};
// Whether it has not run since its run count was that, and it asleep. One read.
bool has_slept_since(const Thread& thread, std::uint64_t runs);
// Whether the thread was seen out of what was foreseen under that number, and has slept since. The ways in
// may have been closed between the two: who sleeps does not come in.
bool is_clean(const Census& census, Thread& thread, std::uint64_t number);
// Whether the thread blocks SIGTRAP, and would be killed by an int3. One that was asleep is asked once, and
// then only how often it has run. `all_slept` becomes false if this one was not seen to sleep.
bool blocks_sigtrap(Census& census, Thread& thread, bool& all_slept);

// A running thread, on the census thread: waits up to `wait_ns` for a sample of it (perf_event:
// registers and stack, no signal). `unknown` with a reason where the system does not allow it, the
// stack is deeper than a sample (64 KiB), or the thread did not run in user mode in time.
Finding sample(Census& census, Thread& thread, const RangeSet& ranges, std::int64_t wait_ns);

// The same from any thread, by number: the thread is looked at once, sampled if it runs and
// `wait_ns` > 0. ESRCH: there is no such thread.
[[nodiscard]] Result<Finding> look_at(int tid, const RangeSet& ranges, std::int64_t wait_ns = 0);

// What the tools' side has found by unwinding a thread that a stale word holds back (unwind/walk.hpp).
// Looks believe it until the thread runs. `serial` comes from a Finding that was made before the walk
// began, so that the number cannot have passed to another thread meanwhile. ESRCH: that thread is
// gone. EAGAIN: it has run since. EOPNOTSUPP: the system does not count how often threads run.
[[nodiscard]] Status testify(int tid, std::uint64_t serial, Testimony testimony);

// What may be done to a thread that keeps running and of which no sample can be had.
enum class LastMeans : std::uint8_t {
  none,
  // A signal that is sent by the thread's own CPU-time clock, so only while it runs. A system call
  // that is interrupted nevertheless is rewound. A real-time signal without a handler is taken, and
  // kept for the life of the process.
  signal,
};

struct ProofOptions {
  Deadline deadline{};              // looks again until then; passed already: one look at each
  std::function<bool()> cancelled;  // asked between rounds; may be empty
  LastMeans last_means = LastMeans::none;
  Deadline last_means_after{};  // not before
  // The asking thread is unwound (own_frames.hpp). Where that does not lead to its first frame, its
  // stack is scanned from this frame on, its return address included, its
  // locals not: frames below it are the runtime's own, and may well hold addresses in the ranges.
  // Null: the caller's.
  const void* own_frame = nullptr;
  bool may_sample = true;
  Foreseen foreseen{};
  // Makes threads that run without a pause come by where they look at themselves (self_proof.hpp), or
  // lets them go their usual way again; from the asking thread, never within a job. May be empty. Only
  // while somebody has not been proven out, runs, and others like him have come by lately.
  std::function<void(bool)> call_in{};
};

struct Proof {
  std::vector<Finding> holders;  // those not proven out; empty: nobody is inside, and none can be
  std::size_t looked_at = 0;     // threads
  std::size_t rounds = 0;
  std::size_t sampled = 0;    // decided by a sample
  std::size_t signalled = 0;  // decided by the last means
  std::size_t answered = 0;   // looked at themselves
  bool cancelled = false;

  bool out() const { return holders.empty(); }
};

// Looks at every thread until all are proven out, the deadline has passed or it was cancelled. Any
// thread; blocks; not from a signal handler. The error means that nothing was proven: no census.
[[nodiscard]] Result<Proof> prove_out(const RangeSet& ranges, const ProofOptions& options,
                                      const void* caller = __builtin_frame_address(0));

const char* to_text(Verdict verdict);
// "futex", "epoll_wait", ...; empty for what has no name here. Static text.
const char* syscall_name(long number);

}  // namespace molt::threads
