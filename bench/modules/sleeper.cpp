// Sleeps in its callback when asked to.
#include <molt/module.hpp>
#include <time.h>

#include "points.hpp"

static int callback(int sleep) noexcept {
  if (sleep) {
    timespec nap{0, 300'000'000};
    nanosleep(&nap, nullptr);
  }
  return 0;
}
MOLT_MODULE("bench_sleeper", "1", "Apache-2.0", "sleeps 300 ms in its callback")
MOLT_HOOK(SharedPoint, callback, MOLT_ORDER_FIRST)
