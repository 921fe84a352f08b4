// own_thread.hpp - threads of the runtime that the host does not notice: they take none of its
// signals and, if they want, none of its descriptors.
#pragma once

#include <pthread.h>

#include <cstddef>

#include "base/result.hpp"

namespace molt::threads {

inline constexpr std::size_t default_stack = 0;

// Starts a thread with all signals blocked and `name` (at most 15 bytes) to be seen in /proc. It has
// at least `stack_bytes`: the host's static thread-local storage is taken from it too, so a small one
// is enlarged where the host has much of that. Its stack may have been another thread's, and is clean
// (clean_stack_below).
[[nodiscard]] Result<pthread_t> start_thread(const char* name, std::size_t stack_bytes,
                                             void* (*run)(void*), void* argument);

// Where libc keeps a thread's start routine, from its descriptor on, the same in all threads: the calling one
// is of start_thread(), and looks for its own. 0: it is not there, since somebody wraps pthread_create().
std::size_t start_routine_offset();

// Zeroes what is left below the caller's frame: by an earlier operation of this thread, which ran
// destructors of modules, or by an earlier thread, whose stack libc gave to this one. In a frame that
// waits for long, an old return address would hold back what it points into (residency.hpp); two
// operations would even wait for each other.
void clean_stack_below();

// Gives the calling thread a descriptor table of its own, and empty: nothing opened from then on
// meets the host's limit, its close-everything loops, its counts or its children. Where the system
// has close_range() the host's descriptors are not even open here for a moment.
[[nodiscard]] Status leave_descriptor_table();
// What some library believes to be stdin, stdout and stderr is nothing of ours.
[[nodiscard]] Status occupy_standard_descriptors();

}  // namespace molt::threads
