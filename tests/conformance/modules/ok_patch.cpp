// One source for all ok_ patches: what one replaces and how it misbehaves is decided when it is built
// (OK_...) and by its parameters. Tells of its callbacks in the words of the recorded logs.
#include <dlfcn.h>
#include <molt/livepatch.hpp>

#include <string>

#include "control.hpp"

MOLT_PARAM(int, pre_ret, 0, "what pre_patch answers for fail_obj", 0)
MOLT_PARAM(std::string, fail_obj, "", "the object for which it does", 0)
MOLT_PARAM(bool, replace, false, "replace all patches", 0)

namespace {

[[maybe_unused]] const char* new_fn_a() { return OK_NAME "-a"; }
[[maybe_unused]] const char* new_fn_b() { return OK_NAME "-b"; }
[[maybe_unused]] void new_slow() {}
// Blocks like the original, by the same switch.
#ifdef OK_SLOW_BLOCKS
MOLT_IMPORT(bool(), ok_wait_while_blocked)
void new_slow_that_blocks() {
  if (ok_wait_while_blocked()) molt_log(&molt_this_module, "new_slow(pnew) exit");
}
#endif
[[maybe_unused]] int new_uslow(int) {
  molt_log(&molt_this_module, "new_uslow");
  return 0;
}

const char* state_of(const molt_patch_target* target) {
  if (target->module == nullptr) return "-";
  switch (molt_module_get_state(target->module)) {
    case MOLT_MODULE_STATE_LIVE:
      return "LIVE";
    case MOLT_MODULE_STATE_COMING:
      return "COMING";
    case MOLT_MODULE_STATE_GOING:
      return "GOING";
    default:
      return "UNFORMED";
  }
}
const char* name_of(const molt_patch_target* target) {
  return target->object != nullptr ? target->object : "vmlinux";
}

int pre_patch(const molt_patch_target* target) {
  const int result = fail_obj.get() == name_of(target) ? pre_ret.get() : 0;
  molt_log(&molt_this_module, "pre_patch %s [%s] ret=%d", name_of(target), state_of(target),
           result);
  return result;
}
template <int which>
void told(const molt_patch_target* target) {
  constexpr const char* names[] = {"post_patch", "pre_unpatch", "post_unpatch"};
  molt_log(&molt_this_module, "%s %s [%s]", names[which], name_of(target), state_of(target));
}

const molt_patch_func target_funcs[] = {
#ifdef OK_BADTGT
    molt::replacement("ok_no_such_fn", new_fn_a),
#endif
#ifdef OK_FN_A
    molt::replacement("ok_fn_a", new_fn_a),
#endif
#ifdef OK_FN_B
    molt::replacement("ok_fn_b", new_fn_b),
#endif
#ifdef OK_DUPFN
    molt::replacement("ok_fn_a", new_fn_b),
#endif
#ifdef OK_SLOW
    molt::replacement("ok_slow", new_slow),
#endif
#ifdef OK_SLOW_BLOCKS
    molt::replacement("ok_slow", new_slow_that_blocks),
#endif
#ifdef OK_USLOW
    molt::replacement("ok_uslow", new_uslow),
#endif
    {nullptr, 0, nullptr, 0, 0}};
molt_patch_func program_funcs[] = {
#ifdef OK_BADVM
    molt::replacement("ok_no_such_vm_fn", new_fn_a),
#endif
    {nullptr, 0, nullptr, 0, 0},
    {nullptr, 0, nullptr, 0, 0}};
int new_waits() { return 2; }

#ifdef OK_STATES
molt_patch_state states[] = {OK_STATES{0, 0, nullptr}};
#else
molt_patch_state states[] = {{0, 0, nullptr}};
#endif

int start() {
  static const molt_patch_callbacks callbacks = {pre_patch, told<0>, told<1>, told<2>};
  static const molt_patch_object objects[] = {{nullptr, program_funcs, callbacks},
                                              {"ok_target", target_funcs, callbacks},
#ifdef OK_DUPOBJ
                                              {"ok_target", target_funcs, callbacks},
#endif
                                              {nullptr, nullptr, {}}};
  static molt_patch patch = {sizeof(molt_patch), 0, objects, states};
  patch.flags = replace * MOLT_PATCH_REPLACE;
  // A thread of the host waits in a function of its own, and shall hold this transition up (K26).
  const auto* holds = static_cast<const int*>(dlsym(RTLD_DEFAULT, "conformance_host_holds"));
  if (holds != nullptr && *holds != 0) {
    program_funcs[0] = molt::replacement("conformance_host_waits", new_waits);
  }
  const int result = molt_patch_enable(&molt_this_module, &patch);
  molt_log(&molt_this_module, "klp_enable_patch=%d", result);
  return result;
}
void finish() { molt_log(&molt_this_module, "module_exit"); }

}  // namespace

MOLT_MODULE(OK_NAME, "1.0", "Apache-2.0", "a patch of ok_target")
#ifndef OK_UNMARKED
MOLT_LIVEPATCH_MODULE
#endif
MOLT_INIT(start)
MOLT_EXIT(finish)
