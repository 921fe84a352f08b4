// A callback that waits in the middle and goes on wherever it is resumed.
#include <molt/module.hpp>

#include "../parked.hpp"
#include "../points.hpp"

static Task call(int argument) {
  parked().told(argument);
  co_await parked().park();
  parked().told(-argument);
}

MOLT_MODULE("coroutine", "1", "Apache-2.0", "a coroutine")
MOLT_HOOK(task_point, call)
