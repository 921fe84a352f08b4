// A module that uses another's export: IMPORT_TYPE and IMPORT come from the build, LICENSE and
// IMPORT_FLAGS may.
#include <molt/module.hpp>

#include "../board.hpp"

#ifndef LICENSE
#define LICENSE "Apache-2.0"
#endif
#ifndef IMPORT_FLAGS
#define IMPORT_FLAGS 0u
#endif
#define IMPORT_OF(type, symbol) MOLT_IMPORT(type, symbol, IMPORT_FLAGS)
IMPORT_OF(IMPORT_TYPE, IMPORT)
#ifdef SECOND
IMPORT_OF(IMPORT_TYPE, SECOND)
#endif

static int start() {
  ++board().inits;
  board().tell(IMPORT ? "has it" : "has it not");
  return board().init ? board().init(&molt_this_module) : 0;
}

static void finish() { ++board().exits; }

MOLT_MODULE(NAME, "1", LICENSE, "a user of another module")
MOLT_INIT(start)
MOLT_EXIT(finish)
