// signal_frame.hpp - what the kernel has put on the stack for a signal's handler.
#pragma once

#include <signal.h>
#include <ucontext.h>

namespace molt::arch {

// The kernel's own, in a frame of the stack: what is written there is what the thread goes on with.
struct SignalFrame {
  siginfo_t* info = nullptr;
  ucontext_t* context = nullptr;
};

// Of the signal that a handler was called for with these two. A host that keeps the handler before its own as
// signal() gave it calls that with the number alone, and the other two are what the registers happened to hold: then the
// nearest frame of that signal above `from` on the stack, within 64 KiB; null, if there is none either.
// Async-signal-safe; trusts no pointer that it is given.
SignalFrame find_signal_frame(int signal, siginfo_t* info, void* context, const void* from);

}  // namespace molt::arch
