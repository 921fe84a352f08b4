/* Uses a function that no library has. */
#include <molt/module.h>

int there_is_no_such_function(void);
static int start(void) { return there_is_no_such_function(); }

MOLT_MODULE("unresolved", "1", "Apache-2.0", "cannot be linked")
MOLT_INIT(start)
