#include <molt/function.hpp>

#include "../board.hpp"
#include "../victim.hpp"

namespace {
struct add : molt::function<long(long, long)> {
  static constexpr const char* name = "libinterpose_victim.so:victim_add";
  static constexpr const char* after = "libinterpose_victim.so:victim_add:after";
};
struct sleeps : molt::function<int(void*)> {
  static constexpr const char* name = "libinterpose_victim.so:victim_sleeps";
  static constexpr const char* after = "libinterpose_victim.so:victim_sleeps:after";
};
struct throws : molt::function<int(int)> {
  static constexpr const char* name = "libinterpose_victim.so:victim_throws";
  static constexpr const char* after = "libinterpose_victim.so:victim_throws:after";
};

void before_add(molt::call<add>& call) {
  ++interpose_board.entries;
  interpose_board.last_a = call.argument<0>();
  interpose_board.last_b = call.argument<1>();
}
void after_add(molt::call<add>& call) {
  ++interpose_board.returns;
  interpose_board.last_result = call.result();
}
void before_sleeps(molt::call<sleeps>&) { ++interpose_board.inside; }
void after_sleeps(molt::call<sleeps>&) { --interpose_board.inside; }
void before_throws(molt::call<throws>&) { ++interpose_board.entries; }
void after_throws(molt::call<throws>&) { ++interpose_board.returns; }
}  // namespace

MOLT_MODULE(NAME, "1", "Apache-2.0", "counts calls")
MOLT_BEFORE(add, before_add)
MOLT_AFTER(add, after_add)
MOLT_BEFORE(sleeps, before_sleeps)
MOLT_AFTER(sleeps, after_sleeps)
MOLT_BEFORE(throws, before_throws)
MOLT_AFTER(throws, after_throws)
