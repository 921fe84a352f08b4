// The smallest module that does anything; it comes and goes many times.

#include "../points.hpp"

#include <molt/module.hpp>

namespace {

int check(const bench::Request* request) { return bench::object<0>(request); }
int start() { return 0; }
void finish() {}

}  // namespace

MOLT_MODULE("bench_small", "1.0", "Apache-2.0", "a callback, an init and an exit")
MOLT_INIT(start)
MOLT_EXIT(finish)
MOLT_HOOK(bench::busy_point, check)
