// single_step.hpp - interrupts a function by a signal after its n-th instruction, for every n.
//
//     for (long n = 1; interrupt_after(n, [] { hook(); }, handler); ++n) { ... check ... }
//
// The trap flag makes the processor trap after each instruction; the kernel clears it while the
// handler runs. What a signal handler can do to the code it interrupts is so tried at every point,
// where timers would need luck.
#pragma once

#include <signal.h>

#include <functional>

namespace single_step {

inline thread_local volatile long countdown = 0;
inline thread_local const std::function<void()>* handler = nullptr;

inline void set_trap_flag(bool on) {
  unsigned long flags;
  asm volatile("pushfq\n popq %0" : "=r"(flags));
  flags = on ? flags | 0x100 : flags & ~0x100ul;
  asm volatile("pushq %0\n popfq" : : "r"(flags) : "cc", "memory");
}

inline void on_trap(int) {
  if (countdown == 0) return;
  countdown = countdown - 1;
  if (countdown == 0) (*handler)();
}

// False: body() ended before its n-th instruction.
inline bool interrupt_after(long n, const std::function<void()>& body,
                            const std::function<void()>& action) {
  struct sigaction trap = {};
  trap.sa_handler = on_trap;
  sigaction(SIGTRAP, &trap, nullptr);
  handler = &action;
  countdown = n;
  set_trap_flag(true);
  body();
  set_trap_flag(false);
  bool reached = countdown == 0;
  countdown = 0;
  return reached;
}

}  // namespace single_step
