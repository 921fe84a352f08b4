// An init without an exit.
#include <molt/module.hpp>

static int start() { return 0; }

MOLT_MODULE("permanent", "1", "Apache-2.0", "has no exit")
MOLT_INIT(start)
