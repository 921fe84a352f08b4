#include "base/barrier.hpp"

#include <linux/membarrier.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace molt {
namespace {
std::atomic<bool> asymmetric{false};
}

void barrier_setup() {
  // MOLT_NO_MEMBARRIER is for tests of the fallback.
  bool ok = getenv("MOLT_NO_MEMBARRIER") == nullptr &&
            syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
  asymmetric.store(ok, std::memory_order_relaxed);
}

bool barrier_asymmetric() { return asymmetric.load(std::memory_order_relaxed); }

void heavy_barrier() {
  full_fence();
#ifndef MOLT_MUTATE_NO_MEMBARRIER
  if (barrier_asymmetric()) syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
#endif
}

}  // namespace molt
