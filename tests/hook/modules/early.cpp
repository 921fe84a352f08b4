// A callback on the hook of the many, before or after them.
#include <molt/module.hpp>

#include "../board.hpp"
#include "../points.hpp"

static void call(int argument) {
  if (board().call) board().call({NAME, 1, many_point::name, argument, 0});
}

MOLT_MODULE(NAME, "1", "Apache-2.0", "a module under test")
MOLT_HOOK(many_point, call, ORDER)
