// A patch whose functions answer LP_VERSION. Which ones it replaces, and how, say its parameters.
#include <molt/livepatch.hpp>

#include "../targets.hpp"

MOLT_PARAM(bool, answer, true, "replace lp_answer", 0)
MOLT_PARAM(bool, answer_too, false, "replace lp_answer_too, which is lp_answer", 0)
MOLT_PARAM(bool, differs, false, "lp_answer_too by another function than lp_answer", 0)
MOLT_PARAM(unsigned, flags, 0, "flags of lp_answer", 0)
MOLT_PARAM(bool, untouched, false, "replace lp_untouched", 0)
MOLT_PARAM(bool, nested, false, "replace lp_outer and lp_inner", 0)
MOLT_PARAM(bool, sleeper, false, "replace lp_sleeper", 0)
MOLT_PARAM(bool, keeps, false, "replace lp_keeps", 0)
MOLT_PARAM(bool, libc, false, "replace getpid of the C library", 0)
MOLT_PARAM(bool, prepared, false, "replace lp_prepared", 0)
MOLT_PARAM(bool, replace, false, "atomic replace", 0)
MOLT_PARAM(bool, immediate, false, "immediate patch", 0)
MOLT_PARAM(bool, immediate_sleeper, false, "lp_sleeper immediate", 0)
MOLT_PARAM(int, init_ret, 0, "what init answers once the patch is enabled", 0)

extern "C" {
static int new_answer(int argument) { return argument + LP_VERSION; }
static int new_untouched(int) { return LP_VERSION; }
static int new_prepared() { return LP_VERSION; }
static int new_inner() { return LP_VERSION; }
static int new_outer(int depth) {
  const int first = lp_inner();
  const int nested_one = depth > 0 ? lp_outer(depth - 1) : first;
  asm volatile("");
  return first == LP_VERSION && nested_one == LP_VERSION && lp_inner() == LP_VERSION ? LP_VERSION
                                                                                     : -1;
}
// Returns to the caller itself: to where the test's own call is.
static int new_keeps() {
  lp_shared.returns_to = __builtin_return_address(0);
  lp_wait_while_held();
  return lp_shared.returns_to == __builtin_return_address(0) ? LP_VERSION : -1;
}
static int new_sleeper() {
  lp_wait_while_held();
  asm volatile("");
  return LP_VERSION;
}
}

MOLT_MODULE(LP_NAME, "1.0", "Apache-2.0", "answers another number")
MOLT_LIVEPATCH_MODULE

static int start() {
  static molt_patch_func funcs[9] = {};
  int n = 0;
  if (answer) funcs[n++] = molt::replacement("lp_answer", new_answer, 0, flags);
  if (answer_too) {
    funcs[n++] = molt::replacement("lp_answer_too", differs ? new_untouched : new_answer);
  }
  if (nested) {
    funcs[n++] = molt::replacement("lp_outer", new_outer);
    funcs[n++] = molt::replacement("lp_inner", new_inner);
  }
  if (untouched) funcs[n++] = molt::replacement("lp_untouched", new_untouched);
  if (keeps) funcs[n++] = molt::replacement("lp_keeps", new_keeps);
  if (prepared) funcs[n++] = molt::replacement("lp_prepared", new_prepared);
  if (sleeper) {
    funcs[n++] = molt::replacement("lp_sleeper", new_sleeper, 0,
                                   immediate_sleeper * MOLT_PATCH_FUNC_IMMEDIATE);
  }
  static molt_patch_object objects[3] = {};
  objects[0].funcs = funcs;
  static const molt_patch_func in_libc[] = {molt::replacement("getpid", new_prepared), {}};
  if (libc) objects[1] = {"libc.so.6", in_libc, {}};
  static molt_patch patch = {sizeof(molt_patch), 0, objects, nullptr};
  patch.flags = replace * MOLT_PATCH_REPLACE | immediate * MOLT_PATCH_IMMEDIATE;
  if (int error = molt_patch_enable(&molt_this_module, &patch)) return error;
  return init_ret;
}
static void finish() {}
MOLT_INIT(start)
MOLT_EXIT(finish)
