// kernel.hpp - addresses that only the kernel has: nothing in memory shows them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace molt::audit {

struct KernelWord {
  bool is_signal = false;  // else a timer
  int number = 0;          // the signal, or the timer's id
  std::uint64_t value = 0;
  std::string what;  // "handler of SIGUSR1"
};

// Handlers and restorers of all signals; what POSIX timers pass to theirs.
std::vector<KernelWord> kernel_words();

}  // namespace molt::audit
