// lingering.hpp - where the module `lingerer` and its test meet.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>

struct Lingering {
  std::atomic<void* (*)(void*)> run{nullptr};
  std::atomic<std::uint32_t> inside{0}, released{0};

  void arrive() { inside.fetch_add(1, std::memory_order_acq_rel); }
  void leave() { inside.fetch_sub(1, std::memory_order_acq_rel); }
  void wait() {
    while (released.load(std::memory_order_acquire) == 0) {
      syscall(SYS_futex, &released, FUTEX_WAIT_PRIVATE, 0, nullptr, nullptr, 0);
    }
  }
  void release() {
    released.store(1, std::memory_order_release);
    syscall(SYS_futex, &released, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
  }
};

__attribute__((visibility("default"))) Lingering& lingering();
