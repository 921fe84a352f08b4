#include <molt/function.hpp>

#include "../board.hpp"
#include "../victim.hpp"

namespace {
struct open_file : molt::function<int(const char* path, int flags)> {
  static constexpr const char* name = "libinterpose_victim.so:victim_open";
};
void before_open(molt::call<open_file>& call) {
  errno = 33;  // nobody's business
  // What a callback calls is not hooked: else this would never end.
  interpose_board.inside += victim_open(".", 1);
  if (call.argument<0>()[0] == '.') call.answer(-1, EACCES);
}
}  // namespace

MOLT_MODULE(NAME, "1", "Apache-2.0", "refuses names with a dot")
MOLT_BEFORE(open_file, before_open)
