// Comes and goes beside one that sleeps.
#include <molt/module.hpp>

#include "points.hpp"

static int callback(int) noexcept { return 0; }
MOLT_MODULE("bench_leaver", "1", "Apache-2.0", "is unloaded")
MOLT_HOOK(SharedPoint, callback)
