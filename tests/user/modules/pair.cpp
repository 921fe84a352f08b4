// A module that offers a function, or one that uses it.
#include <molt/module.hpp>

#ifdef PROVIDES
static int twice(int number) { return 2 * number; }
MOLT_MODULE("provider", "1", "Apache-2.0", "offers a function")
MOLT_EXPORT(twice)
#else
MOLT_IMPORT(int(int), twice)
static int start() { return twice(1) == 2 ? 0 : -EINVAL; }
static void finish() {}
MOLT_MODULE("user", "1", "Apache-2.0", "uses it")
MOLT_INIT(start)
MOLT_EXIT(finish)
#endif
