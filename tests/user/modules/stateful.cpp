// Hands over nothing, in versions that do or do not understand each other.
#include <molt/module.hpp>

static int save(molt::state_writer) { return 0; }
static int restore(molt::state_reader) { return 0; }

MOLT_MODULE("stateful", "1", "Apache-2.0", "has state")
MOLT_STATE(STATE, OLDEST, save, restore)
