// Tells when its exit() begins: the moment at which the core has detached and drained it.

#include "../points.hpp"

#include <molt/module.hpp>

#include <time.h>

#include <atomic>

namespace {

std::atomic<std::int64_t*> exit_began{nullptr};

void note(bench::Request* request) {
  if (request->exit_began) exit_began.store(request->exit_began, std::memory_order_release);
}

void finish() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  if (std::int64_t* at = exit_began.load(std::memory_order_acquire)) {
    *at = now.tv_sec * 1'000'000'000LL + now.tv_nsec;
  }
}

int start() { return 0; }

}  // namespace

MOLT_MODULE("bench_leaver", "1.0", "Apache-2.0", "comes and goes")
MOLT_INIT(start)
MOLT_EXIT(finish)
MOLT_HOOK(bench::sleep_point, note, MOLT_ORDER_LAST)
