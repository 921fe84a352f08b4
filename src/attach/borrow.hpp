// borrow.hpp - a sleeping thread of another process calls one function for us and sleeps on.
//
// Roles      A process of this program's (the tracer, tracer.hpp) and one thread of the target (the
//            victim).
// State      None that outlives the call, but the stub in the target's code, see attach.cpp.
// Invariants B1 The victim's registers change twice, each time in one step: first to what they were
//               before the interruption, with the system call still to be made, and then to the
//               entry of the stub. Between any two instructions of this program the victim can be let
//               go, and goes on as if nothing had been: killing the tracer lets it go.
//            B2 All that the stub needs is in place before the second step, and it goes back by
//               itself. The tracer lets go before it runs.
//            B3 A thread that is not exactly where it was seen asleep is let go untouched.
// Order      The frame is written before the registers; both by system calls.
// Progress   An interrupted thread stops as soon as it runs; one that hangs in the kernel is given up
//            after 10 s. From the stop on everything is bounded.
// Death      Of this program: the tracer goes on. Of the tracer: B1; before the first step an epoll_wait
//            returns EINTR then. Of the victim: waitpid says so. Of the target: every call fails.
// Refuses    Threads in no plain system call, or without room on their stack (victim.hpp).
// Limits     A relative time limit of the rewound call begins anew. A signal for which the program has
//            a handler and that comes within these 100 us runs the handler before the call is made
//            again, and so does not interrupt it: as if it had come just before the call.
// Checked by tests/attach
#pragma once

#include "attach/stub.hpp"
#include "attach/target.hpp"
#include "attach/victim.hpp"

#include <cstdint>

namespace molt::attach {

// Bytes of stack that a borrowed thread needs: frame, vector registers, pthread_create.
inline constexpr std::size_t stack_needed = 32 << 10;

struct Loan {
  double stopped_us = 0;  // from its stop until the thread was let go into the stub
};

// Where code may be placed, and what is to be run there. EAGAIN: the thread is not there any more, or
// has a better thing to do: take another one.
[[nodiscard]] Result<Loan> borrow(const Target& target, const Victim& victim, std::uint64_t code,
                                  const Frame& frame);

// The same for a thread that never sleeps for long: it is stopped at its system calls until one will do,
// which takes it some ten microseconds each. The last choice. While it wants to run it is followed for so
// long; EAGAIN: no call did.
[[nodiscard]] Result<Loan> borrow_at_call(const Target& target, pid_t tid, std::uint64_t code,
                                          const Frame& frame, double patience_us);

}  // namespace molt::attach
