#include <molt/function.hpp>

#include "../board.hpp"

namespace {
struct mean : molt::function<double(double, double)> {
  static constexpr const char* name = "libinterpose_victim.so:victim_mean";
  static constexpr const char* after = "libinterpose_victim.so:victim_mean:after";
};
struct many : molt::function<long(long, long, long, long, long, long, long, long, double)> {
  static constexpr const char* name = "libinterpose_victim.so:victim_many";
  static constexpr const char* after = "libinterpose_victim.so:victim_many:after";
};
// Of the variadic function, what one of its callers gives it.
struct sum : molt::function<int(int, double, double, double)> {
  static constexpr const char* name = "libinterpose_victim.so:victim_sum";
  static constexpr const char* after = "libinterpose_victim.so:victim_sum:after";
};
void after_mean(molt::call<mean>& call) {
  interpose_board.last_float = call.result();
  call.set_result(call.result() + 100);
}
void before_many(molt::call<many>& call) {
  interpose_board.last_a = call.argument<6>();
  interpose_board.last_b = call.argument<7>();
  interpose_board.last_float = call.argument<8>();
}
void after_many(molt::call<many>& call) { interpose_board.last_result = call.result(); }
void before_sum(molt::call<sum>& call) { interpose_board.last_float = call.argument<3>(); }
void after_sum(molt::call<sum>& call) { interpose_board.last_result = call.result(); }
}  // namespace

MOLT_MODULE(NAME, "1", "Apache-2.0", "every kind of argument")
MOLT_AFTER(mean, after_mean)
MOLT_BEFORE(many, before_many)
MOLT_AFTER(many, after_many)
MOLT_BEFORE(sum, before_sum)
MOLT_AFTER(sum, after_sum)
