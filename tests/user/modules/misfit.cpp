// What does not fit this host in one way or another; the build says which.
#include <molt/module.hpp>

struct point : molt::hook_point<int(ARGUMENT)> {
  static constexpr const char* name = POINT;
};
static int answer(ARGUMENT) { return 0; }

#ifdef NEEDS_A_SYMBOL
MOLT_IMPORT(int(int), nobody_has_it)
#endif

MOLT_MODULE("misfit", "1", "Apache-2.0", "for another host")
MOLT_HOOK(point, answer, MOLT_ORDER_NORMAL, FLAGS)
