// seccomp.hpp - would a process's filters let the runtime work?
//
// The kernel hands out a thread's filters to who traces it and has CAP_SYS_ADMIN, as the instructions
// that it runs for each system call. They are run here for each call that the runtime needs, the most
// severe answer of all filters counts, as in the kernel.
#pragma once

#include "base/result.hpp"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/types.h>

#include <cstdint>
#include <span>
#include <vector>

namespace molt::attach {

using Filter = std::vector<sock_filter>;

// What one filter answers (SECCOMP_RET_*). A filter that does not end, or reads beyond the data, which
// the kernel would not have taken, kills.
[[nodiscard]] std::uint32_t answer_of(std::span<const sock_filter> filter,
                                      const seccomp_data& data);

// EPERM, naming the call and what the filter would do about it.
[[nodiscard]] Status check_filters(std::span<const Filter> filters);

// The system calls that are asked about. A filter that allows these and what the program itself needs
// serves.
[[nodiscard]] std::vector<long> calls_made();

// Whether a thread has any.
[[nodiscard]] bool has_filters(pid_t pid, pid_t tid);
// Of a thread that the caller has stopped. EPERM also where they cannot be read.
[[nodiscard]] Status check_filters(pid_t stopped_tid);

}  // namespace molt::attach
