#include <molt/function.hpp>

#include "../board.hpp"
#include "../victim.hpp"

namespace {
struct outer : molt::function<long()> {
  static constexpr const char* name = "libinterpose_victim.so:victim_outer";
  static constexpr const char* after = "libinterpose_victim.so:victim_outer:after";
};
struct inner : molt::function<long()> {
  static constexpr const char* name = "libinterpose_victim.so:victim_inner";
};
void count_outer(molt::call<outer>&) { ++interpose_board.inside; }
void count_inner(molt::call<inner>&) { ++interpose_board.last_a; }
}  // namespace

MOLT_MODULE(NAME, "1", "Apache-2.0", "counts calls of nested functions")
MOLT_BEFORE(outer, count_outer)
MOLT_AFTER(outer, count_outer)
MOLT_BEFORE(inner, count_inner)
