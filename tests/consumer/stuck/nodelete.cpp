#include <molt/module.hpp>

#include "../project/greeting.hpp"

static int callback(int hour) { return hour; }

MOLT_MODULE("nodelete", "1.0", "Apache-2.0", "cannot be unloaded")
MOLT_HOOK(greeting_point, callback)
