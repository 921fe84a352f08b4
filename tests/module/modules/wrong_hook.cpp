// Attaches to a hook: POINT_NAME with POINT_TYPE, POINT_FLAGS.
#include <molt/module.hpp>

struct point : molt::hook_point<POINT_TYPE> {
  static constexpr const char* name = POINT_NAME;
};

static int callback(long) { return 1; }

MOLT_MODULE(NAME, "1", "Apache-2.0", "wants a hook")
MOLT_HOOK(point, callback, MOLT_ORDER_NORMAL, POINT_FLAGS)
