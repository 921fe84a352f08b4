/* Exports what om_life exports. */
#include <molt/module.h>

int om_life_fn(void) { return 7; }
MOLT_EXPORT_C(om_life_fn, "i32()", 0)

MOLT_MODULE("om_dupsym", "1.0", "Apache-2.0", "exports a symbol that another module exports")
