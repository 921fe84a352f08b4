// A callback on a hook that the host declares otherwise, or not at all; the build says which.
#include <molt/module.hpp>

struct other_point : molt::hook_point<POINT_TYPE> {
  static constexpr const char* name = POINT_NAME;
};
static int call(long argument) { return static_cast<int>(argument); }

MOLT_MODULE(NAME, "1", "Apache-2.0", "a module for another host")
MOLT_HOOK(other_point, call, MOLT_ORDER_NORMAL, FLAGS)
