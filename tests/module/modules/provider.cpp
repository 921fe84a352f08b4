// Exports for everybody and for free licences only.
#include <molt/module.hpp>

#include "../board.hpp"

static int start() {
  ++board().inits;
  return board().init ? board().init(&molt_this_module) : 0;
}

static void finish() {
  ++board().exits;
  if (board().exit) board().exit(&molt_this_module);
}

extern "C" int provided(int value) { return value + 1; }
extern "C" int reserved(int value) { return value + 2; }
MOLT_EXPORT(provided)
MOLT_EXPORT(reserved, MOLT_RESTRICTED)

MOLT_MODULE("provider", "1", "Apache-2.0", "exports two functions")
MOLT_INIT(start)
MOLT_EXIT(finish)
