// A C++ callback on the hook of the C host; it throws at 13.
#include <molt/module.hpp>

#include <stdexcept>

struct c_point : molt::hook_point<int(int)> {
  static constexpr const char* name = "hook.c";
};
static int call(int argument) {
  if (argument == 13) throw std::runtime_error("thirteen");
  return argument < 0 ? 100 : 40;  // 40 is the C host's default
}

MOLT_MODULE("for_c", "1", "Apache-2.0", "a callback for a C host")
MOLT_HOOK(c_point, call)
