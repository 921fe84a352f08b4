// Registers callbacks in init, and forgets them in exit.
#include <molt/module.hpp>

#include "../registry.hpp"

static void on_event() { asm volatile(""); }

static int start() {
#ifdef FORGETS
  g_on_event = on_event;
  g_registration = new Registration{1, on_event};
#else
  auto* mine = new Registration{2, on_event};
  asm volatile("" ::"r"(mine) : "memory");
  delete mine;
#endif
  return 0;
}

MOLT_MODULE(NAME, "1", "Apache-2.0", "a module under test")
MOLT_INIT(start)
MOLT_EXIT([] {})
