#include <molt/function.hpp>

namespace {
struct add : molt::function<long(long, long)> {
  static constexpr const char* name = "libinterpose_victim.so:victim_add";
  static constexpr const char* after = "libinterpose_victim.so:victim_add:after";
};
void after_add(molt::call<add>& call) {
  errno = 33;  // nobody's business
  const long x = call.result();
  call.set_result(OPERATION);
}
}  // namespace

MOLT_MODULE(NAME, "1", "Apache-2.0", "changes a result")
MOLT_AFTER(add, after_add)
