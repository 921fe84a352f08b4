// attach.hpp - puts the runtime into a running process that never heard of it.
//
// Roles      This program; one borrowed thread of the target (borrow.hpp); one thread of our own in it
//            (helper.hpp), which does what takes long: dlopen, and starting the runtime.
// State      In the target: the stub behind the end of some library's text, two pages until the helper
//            ends, then the runtime.
// Invariants T1 One attach at a time and process: a lock on /proc/PID, which no name space hides.
//            T2 The stub is taken out again only when nobody can be in it.
// Order      Look (find functions, room for code) -> borrow -> helper -> dlopen -> molt_start_agent -> end the
//            helper. A failure before the borrowing leaves the target as it was.
// Death      borrow.hpp, helper.hpp. Of this program in the middle: the target goes on, at worst with a
//            library that nobody asked anything of, and 16 KiB of pages.
// Refuses    Static programs, other C libraries than glibc, other architectures, processes that are
//            traced, not ours, or whose seccomp filter does not allow what the runtime does; each with
//            what to do about it.
// Checked by tests/attach
//
// Blocks; any thread; traces by a process that it forks for that, so several processes may be attached
// to at once.
#pragma once

#include "base/result.hpp"

#include <string>

namespace molt::attach {

struct Options {
  std::string runtime;  // path of libmolt.so
  int timeout_ms =
      10'000;  // to find a thread that can be borrowed; what is begun then has 10 s at least
};

enum class Found {
  nothing,      // it is loaded and started now
  not_started,  // the runtime was there: a host that did not start it, or the child of a fork
  running,      // and it answers already: nothing was done
};

struct Report {
  Found found = Found::nothing;
  double stopped_us = 0;  // one thread; no other one was stopped
  double total_us = 0;
  bool by_memfd = false;  // the path could not be used in there
};

// EALREADY is not an error: see Report::found.
[[nodiscard]] Result<Report> attach(int pid, const Options& options);

}  // namespace molt::attach
