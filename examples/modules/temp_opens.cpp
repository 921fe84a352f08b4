// temp_opens - temp_files for programs without hook points.
//
//     molt load -p PID temp_opens.so mode=refuse

#include "opens.hpp"
#include "temp_files.hpp"

namespace {

bool is_refused(const char* path, int flags) {
  if (!is_mistake(path, flags)) return false;
  const Reaction what = mode.get();
  molt_log(&molt_this_module, "%s: a name that others can guess, created without O_EXCL%s", path,
           what == Reaction::refuse ? ": refused" : "");
  return what == Reaction::refuse;
}

void check(molt::call<opens::open_file>& call) {
  if (is_refused(call.argument<0>(), call.argument<1>())) call.answer(-1, EACCES);
}

void check_below(molt::call<opens::open_below>& call) {
  if (is_refused(call.argument<1>(), call.argument<2>())) call.answer(-1, EACCES);
}

}  // namespace

MOLT_MODULE("temp_opens", "1.0", "Apache-2.0", "detects likely mistakes with temporary files")
MOLT_BEFORE(opens::open_file, check)
MOLT_BEFORE(opens::open_below, check_below)
