// A module that tells of everything that runs at its end.
#include <molt/module.hpp>

#include <cstdlib>

#include "../board.hpp"

namespace {

struct Object {
  ~Object() { board().tell("object"); }
} object;

int start() {
#if !defined(__SANITIZE_THREAD__)  // has an atexit() of its own, which forgets whose it is
  std::atexit([] { board().tell("handler"); });
#endif
  return 0;
}
void finish() { board().tell("exit"); }

__attribute__((destructor)) void function() { board().tell("function"); }

}  // namespace

#ifdef WITH_SYMBOLS
extern "C" __attribute__((visibility("default"))) int mortal_symbol() { return 1; }
#endif

MOLT_MODULE("mortal", "1", "Apache-2.0", "tells of its end")
MOLT_INIT(start)
MOLT_EXIT(finish)
