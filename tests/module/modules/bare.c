/* Nothing but a name. */
#include <molt/module.h>

#ifndef NAME
#define NAME "bare"
#endif
#ifdef MAGIC
#undef MOLT_MAGIC
#define MOLT_MAGIC MAGIC
#endif
#ifdef ABI
#undef MOLT_ABI
#define MOLT_ABI ABI
#endif
MOLT_MODULE(NAME, "1", "Apache-2.0", "has nothing")
