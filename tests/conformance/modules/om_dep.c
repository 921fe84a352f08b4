/* om_dep needs om_life. Built twice: as om_dep, and as x_license, whose licence rules out the
 * restricted export that it wants. */
#include <molt/module.h>

static int (*om_life_fn)(void);
MOLT_IMPORT_C(om_life_fn, om_life_fn, "i32()", 0)

static int start(void) {
  molt_log(&molt_this_module, "init fn=%d", om_life_fn());
  return 0;
}

static void finish(void) { molt_log(&molt_this_module, "exit"); }

MOLT_MODULE("om_dep", "1.0", OM_LICENSE, "uses a function of om_life")
MOLT_INIT(start)
MOLT_EXIT(finish)
