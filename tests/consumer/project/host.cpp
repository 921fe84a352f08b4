// A host that loads the module given to it, sees it work, and sees it go.
#include <molt/host.hpp>

#include <cstdio>

#include "greeting.hpp"

static molt::hook<greeting_point> on_greeting;

static bool expect(const char* when, int got, int wanted) {
  if (got != wanted) std::printf("%s: %d, not %d (%s)\n", when, got, wanted, molt_last_error());
  return got == wanted;
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  bool good = expect("hook before load", on_greeting(8), 0) &&
              expect("molt_load", molt_load(argv[1], nullptr, 0, -1), 0) &&
              expect("hook while loaded", on_greeting(8), 108) &&
              expect("molt_unload", molt_unload("polite", 0, -1), 0) &&
              expect("hook after unload", on_greeting(8), 0);
  return good ? 0 : 1;
}
