#include <molt/module.hpp>

struct open_point : molt::hook_point<int(const char*, int)> {
  static constexpr const char* name = "files.open";
};

MOLT_PARAM(int, limit, 10, "opens allowed: per client", MOLT_WRITABLE)

static int count(const char*, int) { return limit.get(); }

MOLT_MODULE("good", "1.2", "MIT", "counts opens")
MOLT_HOOK(open_point, count)
