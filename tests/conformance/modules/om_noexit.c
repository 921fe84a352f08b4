/* An init without an exit: permanent. */
#include <molt/module.h>

static int start(void) {
  molt_log(&molt_this_module, "init");
  return 0;
}

MOLT_MODULE("om_noexit", "1.0", "Apache-2.0", "has no exit")
MOLT_INIT(start)
