// futex.hpp - waiting for a 32-bit word to change, with a deadline. Everything here is
// async-signal-safe and allocates nothing.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>

namespace molt {

inline std::int64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
}

// A moment on the monotonic clock; `never` is far away.
struct Deadline {
  std::int64_t at_ns = INT64_MAX;
  static Deadline in_ms(std::int64_t ms) {
    return {ms < 0 ? INT64_MAX : now_ns() + ms * 1'000'000};
  }
  bool passed() const { return at_ns != INT64_MAX && now_ns() >= at_ns; }
  // Whichever comes first.
  Deadline sooner(Deadline other) const { return at_ns < other.at_ns ? *this : other; }
};

// Returns when *word != value, on a wake, a signal, or the deadline; the caller looks again.
inline void futex_wait(const std::uint32_t* word, std::uint32_t value, Deadline deadline = {}) {
  timespec t{deadline.at_ns / 1'000'000'000, deadline.at_ns % 1'000'000'000};
  syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, value,
          deadline.at_ns == INT64_MAX ? nullptr : &t, nullptr, FUTEX_BITSET_MATCH_ANY);
}
inline void futex_wait(const std::atomic<std::uint32_t>& word, std::uint32_t value,
                       Deadline deadline = {}) {
  futex_wait(reinterpret_cast<const std::uint32_t*>(&word), value, deadline);
}
inline void futex_wake_all(const std::atomic<std::uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace molt
