// A module that is loaded and unloaded over and over.
#include <molt/module.hpp>

#include "points.hpp"

static int callback(int) noexcept { return 0; }
static int start() { return 0; }
static void finish() {}
MOLT_MODULE("bench_small", "1", "Apache-2.0", "comes and goes")
MOLT_HOOK(SharedPoint, callback)
MOLT_INIT(start)
MOLT_EXIT(finish)
