// Empty callbacks on a function of a library that knows nothing of it.

#include <molt/function.hpp>

namespace {

struct victim : molt::function<long(long)> {
  static constexpr const char* name = "libmolt-bench-victim.so:" FUNCTION;
  static constexpr const char* after = "libmolt-bench-victim.so:" FUNCTION ":after";
};

void nothing(molt::call<victim>&) noexcept {}

}  // namespace

MOLT_MODULE(NAME, "1.0", "Apache-2.0", "does nothing before or after a function")
#if BEFORE
MOLT_BEFORE(victim, nothing)
#endif
#if AFTER
MOLT_AFTER(victim, nothing)
#endif
