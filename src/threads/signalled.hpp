// signalled.hpp - the last means: a running thread looks at itself, in a signal handler. Inside
// threads/; opt-in (LastMeans::signal).
//
// Roles      The census thread asks, one thread at a time; the thread's handler answers.
// State      One request, static: a handler that comes late finds it withdrawn. The signal's handler,
//            once installed, stays: a pending signal must never meet the default action.
// Invariants Z1 The signal is sent by a timer on the thread's own CPU-time clock: it expires only
//               while that thread runs. Since Linux 5.10 it is delivered on the way back to user mode,
//               when no system call is under way that it could interrupt.
//            Z2 Before that, a system call that it interrupts nevertheless is rewound: its number is
//               read from the instruction that loaded it. What cannot be decoded sees EINTR.
//            Z3 Only a real-time signal that has the default action is taken, and only for threads
//               that do not block it.
// Order      request written, state = armed (release) -> handler: state armed -> taken (acquire) ->
//            answer, state = done (release) -> census thread (acquire).
// Death      The thread ends: the timer goes with it, the request times out.
// Refuses    No free real-time signal; the thread blocks it; timers are not allowed.
// Checked by tests/threads/signalled_test.cpp
#pragma once

#include <ucontext.h>

#include <cstdint>

#include "threads/residency.hpp"

namespace molt::threads {

// On the census thread; waits up to wait_ns for the thread to run. `unknown` with the reason if there
// was no answer.
Finding signal_and_look(Census& census, Thread& thread, const RangeSet& ranges,
                        std::int64_t wait_ns);

// If the context is that of a system call which a signal has just ended with EINTR, and its number
// can be decoded: as if it had not been called yet. Async-signal-safe.
bool rewind_interrupted(ucontext_t& context);

}  // namespace molt::threads
