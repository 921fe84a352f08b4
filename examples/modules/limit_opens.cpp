// limit_opens - limit_names for programs without hook points: whatever the program opens.
//
//     molt load -p PID limit_opens.so deny='*.key'

#include "limit_names.hpp"
#include "opens.hpp"

namespace {

void limit(molt::call<opens::open_file>& call) {
  if (!may_open(call.argument<0>(), call.argument<1>())) call.answer(-1, EACCES);
}

void limit_below(molt::call<opens::open_below>& call) {
  if (!may_open(call.argument<1>(), call.argument<2>())) call.answer(-1, EACCES);
}

}  // namespace

MOLT_MODULE("limit_opens", "1.0", "Apache-2.0", "limits which files a program opens and creates")
MOLT_BEFORE(opens::open_file, limit)
MOLT_BEFORE(opens::open_below, limit_below)
