#include <molt/module.hpp>

struct open_point : molt::hook_point<int(const char*, int)> {
  static constexpr const char* name = "files.open";
};
struct unlink_point : molt::hook_point<int(const char*, int)> {
  static constexpr const char* name = "files.unlink";
};

MOLT_PARAM(int, limit, 3, "opens allowed", MOLT_WRITABLE)
static int refuse(const char* path, int flags) { return path[0] == '.' ? -flags : limit.get(); }

MOLT_MODULE("sample", "1.2", "MIT", "looks at names = reads them")
MOLT_HOOK(open_point, refuse)
MOLT_HOOK(unlink_point, refuse)
