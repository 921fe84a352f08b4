#include <molt/function.hpp>

#include <stdexcept>

namespace {
struct open_file : molt::function<int(const char* path, int flags)> {
  static constexpr const char* name = "libinterpose_victim.so:victim_open";
  static constexpr auto on_exception = molt::refuse(-1, EPERM);
};
struct add : molt::function<long(long, long)> {
  static constexpr const char* name = "libinterpose_victim.so:victim_add";
};
void fails(molt::call<open_file>&) { throw std::runtime_error("a mistake"); }
void fails_too(molt::call<add>&) { throw 1; }
}  // namespace

MOLT_MODULE(NAME, "1", "Apache-2.0", "throws")
MOLT_BEFORE(open_file, fails)
MOLT_BEFORE(add, fails_too)
