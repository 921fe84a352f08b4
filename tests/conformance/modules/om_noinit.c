/* Neither init nor exit. Built twice: as om_noinit, and as x_vermagic, made for another runtime. */
#include <molt/module.h>

#ifdef OM_MAGIC
#undef MOLT_MAGIC
#define MOLT_MAGIC OM_MAGIC
#endif

MOLT_MODULE("om_noinit", "1.0", "Apache-2.0", "has neither init nor exit")
