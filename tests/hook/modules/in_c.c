/* A module in C, on a hook of the C++ part and on the one of the C part of the host. */
#include <molt/module.h>

static int twice(int argument) { return 2 * argument; }
static int thrice(int argument) { return 3 * argument; }

MOLT_MODULE("in_c", "1", "Apache-2.0", "a module in C")
MOLT_HOOK_C("hook.first", "i32(i32)", twice, MOLT_ORDER_NORMAL, 0)
MOLT_HOOK_C("hook.c", "i32(i32)", thrice, MOLT_ORDER_NORMAL, MOLT_OPTIONAL)
