// masks.hpp - threads that block SIGTRAP, and so could not live through a change of code.
//
// A function without padding is redirected by way of an int3 (arch/x86_64/redirect.hpp). A thread that
// meets it while it blocks SIGTRAP is killed by the kernel; so the runtime refuses as long as there is
// one. Libraries have such threads (jemalloc's in redis block everything), and only from outside can
// their masks be changed: each is stopped for some ten microseconds, its system call goes on as after
// an attach, and SIGTRAP stays open from then on, which nobody sends.
#pragma once

#include "base/result.hpp"

#include <sys/types.h>

#include <string>
#include <vector>

namespace molt::attach {

struct Thread {
  pid_t tid;
  std::string name;
};

// Those of a process, from /proc.
[[nodiscard]] std::vector<Thread> blocking_traps(int pid);

// Opens SIGTRAP in these. Threads that have ended meanwhile are no failure.
[[nodiscard]] Status open_traps(const std::vector<Thread>& threads);

}  // namespace molt::attach
