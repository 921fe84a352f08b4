#include <molt/function.hpp>

#include "../board.hpp"

namespace {
struct open_file : molt::function<int(const char* path, int flags, unsigned mode)> {
  static constexpr const char* name = "libc.so.6:open64";
  static constexpr const char* after = "libc.so.6:open64:after";
};
void before_open(molt::call<open_file>&) { ++interpose_board.entries; }
void after_open(molt::call<open_file>& call) { interpose_board.last_result = call.result(); }
}  // namespace

MOLT_MODULE(NAME, "1", "Apache-2.0", "counts opened files")
MOLT_BEFORE(open_file, before_open)
MOLT_AFTER(open_file, after_open)
