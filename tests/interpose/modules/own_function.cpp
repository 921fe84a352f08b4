#include <molt/function.hpp>

#include "../board.hpp"

namespace {
struct local : molt::function<long(long)> {
  static constexpr const char* name = ":functions_test_local";
};
void before_local(molt::call<local>& call) {
  ++interpose_board.entries;
  if (call.argument<0>() == 13) call.answer(-13);
}
}  // namespace

MOLT_MODULE(NAME, "1", "Apache-2.0", "hooks a function of the program")
MOLT_BEFORE(local, before_local)
