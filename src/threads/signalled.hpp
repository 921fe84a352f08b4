// signalled.hpp - the last means: a running thread looks at itself, in a signal handler. Inside
// threads/; opt-in (LastMeans::signal).
//
// Roles      The census thread asks, many threads at once; each one's handler answers.
// State      Requests, static: a handler that comes late finds its own withdrawn. The signal's handler,
//            once installed, stays: a pending signal must never meet the default action.
// Invariants Z1 The signal is sent by a timer on the thread's own CPU-time clock: it expires only
//               while that thread runs. Since Linux 5.10 it is delivered on the way back to user mode,
//               when no system call is under way that it could interrupt.
//            Z2 Before that, a system call that it interrupts nevertheless is rewound: its number is
//               read from the instruction that loaded it. What cannot be decoded sees EINTR.
//            Z3 Only a real-time signal that has the default action is taken, and only for threads
//               that do not block it.
//            Z4 An answer is what the thread has seen of itself after it was asked. Where that is not `out`
//               it looks again, at later ticks of its clock: a thread that meets an int3 in each round of
//               its loop spends most of them in the trap's handler, with the address on its stack.
// Order      request written, state = armed (release) -> handler: state armed -> taken (acquire) ->
//            answer, state = done (release) -> census thread (acquire).
// Death      The thread ends: the timer goes with it, the request times out.
// Refuses    No free real-time signal; the thread blocks it; timers are not allowed.
// Checked by tests/threads/signalled_test.cpp
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <span>

#include "threads/residency.hpp"

namespace molt::threads {

// On the census thread; waits up to wait_ns for all of them to run. `unknown` with the reason where there
// was no answer.
void signal_and_look(Census& census, std::span<Thread* const> threads, const RangeSet& ranges,
                     std::int64_t wait_ns, Finding* findings);

// If the context is that of a system call which a signal has just ended with EINTR, and its number
// can be decoded: as if it had not been called yet. Async-signal-safe.
bool rewind_interrupted(ucontext_t& context);

}  // namespace molt::threads
