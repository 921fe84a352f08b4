// single_step.hpp - interrupts a function by a signal after its n-th instruction, for every n.
//
//     for (long n = 1; interrupt_after(n, [] { hook(); }, handler); ++n) { ... check ... }
//
// The trap flag makes the processor trap after each instruction; the kernel clears it while the
// handler runs. What a signal handler can do to the code it interrupts is so tried at every point,
// where timers would need luck.
#pragma once

#include <signal.h>
#include <ucontext.h>

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

// SIGTRAP stands for the signals that arrive from outside: where the code blocks those, it waits.
inline void on_trap(int, siginfo_t*, void* context) {
  auto* interrupted = static_cast<ucontext_t*>(context);
  if (countdown == 0 || sigismember(&interrupted->uc_sigmask, SIGUSR1)) return;
  countdown = countdown - 1;
  if (countdown != 0) return;
  (*handler)();
  interrupted->uc_mcontext.gregs[REG_EFL] &= ~0x100ll;  // the rest at full speed
}

// False: body() ended before its n-th instruction.
inline bool interrupt_after(long n, const std::function<void()>& body,
                            const std::function<void()>& action) {
  struct sigaction trap = {};
  trap.sa_sigaction = on_trap;
  trap.sa_flags = SA_SIGINFO;
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
