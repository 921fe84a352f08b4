/* Uses a function that no library has; the build says which. */
#include <molt/module.h>

int MISSING(void);
static int start(void) { return MISSING(); }

MOLT_MODULE("unresolved", "1", "Apache-2.0", "cannot be linked")
MOLT_INIT(start)
