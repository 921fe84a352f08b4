// victim.hpp - which thread may be borrowed.
//
// A thread that creates another one allocates memory and takes locks of the C library. It can do that
// safely only where its program could: not in the middle of an allocator, nor in a signal handler that
// may have interrupted one. A thread asleep in a plain system call is at such a place, if
//   - it waits for an event, not for a lock: a mutex's waiter (FUTEX_WAIT) may hold others already;
//     condition variables, semaphores and joins wait with FUTEX_WAIT_BITSET;
//   - no signal frame is on its stack, but of a handler that has interrupted such a call;
//   - there is room on its stack.
#pragma once

#include "attach/target.hpp"

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace molt::attach {

struct Victim {
  pid_t tid = 0;
  long call = 0;
  std::array<std::uint64_t, 6> arguments = {};
  std::uint64_t stack_pointer = 0;
  std::uint64_t instruction = 0;  // behind the `syscall`
  // It had been interrupted before (it was stopped, frozen, traced), and the kernel goes on with it by a call of its
  // own, restart_syscall(): that is what registers show, and what cannot be made again once the thread was elsewhere.
  // `call` is the one that the program made.
  bool is_restarted = false;
  // The lower the better. Calls that the kernel begins anew by itself and that have no time limit come
  // first: rewinding costs them nothing.
  int rank = 0;

  long shown_call() const;
};

// Whether a thread that stands where this says, in or before that call, may be borrowed. Reads the
// target's memory.
bool may_be_borrowed(const Target& target, const Victim& victim, std::size_t needed);

// All that may be borrowed, the best first. `needed` bytes have to be free on the stack. What speaks
// against the others is appended to `why_not` as one line, if it is given.
[[nodiscard]] std::vector<Victim> find_victims(const Target& target, std::size_t needed,
                                               std::string* why_not = nullptr);

// Whom to follow to the next system call: those that run. None does: all but our own.
[[nodiscard]] std::vector<pid_t> find_runners(const Target& target);

// Is the thread asleep right there? Without touching it.
[[nodiscard]] std::optional<Victim> asleep(const Target& target, pid_t tid);

}  // namespace molt::attach
