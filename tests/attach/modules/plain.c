/* Loaded into programs that were built without Molt. */
#include <molt/module.h>

MOLT_MODULE("plain", "1", "Apache-2.0", "has nothing")
