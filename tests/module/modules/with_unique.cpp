// A static in a visible inline function is, with gcc and without -fno-gnu-unique, STB_GNU_UNIQUE:
// the dynamic loader never unmaps a library that defines one.
#include <molt/module.hpp>

#include "../points.hpp"

template <class T>
inline int& counter() {
  static int count = 0;
  return count;
}

static int call(int argument) { return counter<int>() += argument; }
static int start() { return 0; }
static void finish() {}

MOLT_MODULE("with_unique", "1", "Apache-2.0", "has a unique symbol")
MOLT_INIT(start)
MOLT_EXIT(finish)
MOLT_HOOK(probe_point, call)
