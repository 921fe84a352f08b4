#include <molt/function.hpp>

#include "../board.hpp"

namespace {
struct tiny : molt::function<long(long)> {
  static constexpr const char* name = LIBRARY ":tiny";
};
void before_tiny(molt::call<tiny>&) { ++interpose_board.entries; }
}  // namespace

MOLT_MODULE(NAME, "1", "Apache-2.0", "hooks a function of four bytes")
MOLT_BEFORE(tiny, before_tiny)
