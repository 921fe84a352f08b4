#include <molt/module.h>

/* One of what is refused. A C module's signature is a text. */
static int before(struct molt_call*) { return 0; }

extern "C" {
MOLT_MODULE_BODY_(NAME, "1", "Apache-2.0", "cannot be loaded")
}
#if defined(LIBRARY)
MOLT_HOOK_C("libnowhere.so.1:f", "void()", before, MOLT_ORDER_NORMAL, 0)
#elif defined(FUNCTION)
MOLT_HOOK_C("libinterpose_victim.so:victim_nowhere", "void()", before, MOLT_ORDER_NORMAL, 0)
#elif defined(INDIRECT)
MOLT_HOOK_C("libc.so.6:memcpy", "void*(void*,const void*,u64)", before, MOLT_ORDER_NORMAL, 0)
#elif defined(RUNTIME)
MOLT_HOOK_C("libmolt.so.0:molt_load", "i32()", before, MOLT_ORDER_NORMAL, 0)
#elif defined(SIGNATURE)
MOLT_HOOK_C("libinterpose_victim.so:victim_add", "i32(i32,i32)", before, MOLT_ORDER_NORMAL, 0)
#elif defined(VALUE)
MOLT_HOOK_C("libinterpose_victim.so:victim_spins", "pair{16:8}(i32)", before, MOLT_ORDER_NORMAL, 0)
#elif defined(ALIAS)
MOLT_HOOK_C("libinterpose_victim.so:victim_add", "i64(i64,i64)", before, MOLT_ORDER_NORMAL, 0)
MOLT_HOOK_C("libc.so.6:open", "i32(const char*,i32,u32)", before, MOLT_ORDER_NORMAL, 0)
#endif
