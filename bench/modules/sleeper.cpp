// Keeps its caller inside for as long as the caller asks for.

#include "../points.hpp"

#include <molt/module.hpp>

#include <time.h>

namespace {

void stay(bench::Request* request) {
  if (request->sleep_ms == 0) return;
  timespec left = {request->sleep_ms / 1000, request->sleep_ms % 1000 * 1'000'000L};
  request->inside.store(1, std::memory_order_release);
  while (nanosleep(&left, &left) != 0) {
  }
  request->inside.store(0, std::memory_order_release);
}

}  // namespace

MOLT_MODULE("bench_sleeper", "1.0", "Apache-2.0", "keeps its callers inside")
MOLT_HOOK(bench::sleep_point, stay)
