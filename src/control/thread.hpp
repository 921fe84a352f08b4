// thread.hpp - threads that the host does not notice: they take none of its signals.
#pragma once

#include <pthread.h>

#include <cstddef>

#include "base/result.hpp"

namespace molt::control {

inline constexpr std::size_t default_stack = 0;

// Starts a thread with all signals blocked and `name` (at most 15 bytes) to be seen in /proc. It has
// at least `stack_bytes`: the host's static thread-local storage is taken from it too, so a small one
// is enlarged where the host has much of that.
[[nodiscard]] Result<pthread_t> start_thread(const char* name, std::size_t stack_bytes,
                                             void* (*run)(void*), void* argument);

}  // namespace molt::control
