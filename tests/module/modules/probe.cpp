// A module with everything that a life may touch: parameters, an export, a callback, init and exit.
// NAME, VERSION and ANSWER come from the build.
#include <molt/module.hpp>

#include "../board.hpp"
#include "../points.hpp"

MOLT_PARAM(int, number, 0, "a number", MOLT_WRITABLE)
MOLT_PARAM(bool, flag, false, "a flag", 0)
MOLT_PARAM(std::string, text, "", "a text", 0)

static int call(int argument) {
  ++board().calls;
  if (board().call) return board().call(&molt_this_module, argument);
  return ANSWER;
}

#ifdef EXPORT
extern "C" int EXPORT() { return ANSWER; }
#define EXPORT_OF(function) MOLT_EXPORT(function)
EXPORT_OF(EXPORT)
#endif

static int start() {
  ++board().inits;
  return board().init ? board().init(&molt_this_module) : 0;
}

static void finish() {
  ++board().exits;
  if (board().exit) board().exit(&molt_this_module);
}

MOLT_MODULE(NAME, VERSION, "Apache-2.0", "a module under test")
MOLT_INIT(start)
MOLT_EXIT(finish)
MOLT_HOOK(probe_point, call)
