#include <molt/module.h>

static int limit = 3;
static int refuse(const char* path, int flags) { return path[0] == '.' ? -flags : limit; }

MOLT_MODULE("sample", "1.2", "MIT", "looks at names = reads them")
MOLT_HOOK_C("files.open", "i32(const char*,i32)", refuse, MOLT_ORDER_NORMAL, 0)
MOLT_HOOK_C("files.unlink", "i32(const char*,i32)", refuse, MOLT_ORDER_NORMAL, 0)
MOLT_PARAM_C(limit, "opens allowed", MOLT_WRITABLE)
