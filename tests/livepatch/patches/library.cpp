// Replaces a function of a library that comes and goes, and one of the program.
#include <dlfcn.h>
#include <molt/livepatch.hpp>

#include <string>

#include "../plugin.hpp"
#include "../targets.hpp"

MOLT_PARAM(bool, sleeper, false, "replace lp_sleeper of the program", 0)
MOLT_PARAM(std::string, object, "liblp_plugin.so", "what the library is called", 0)
MOLT_PARAM(std::string, function, "lp_plugin_answer", "the function of the library", 0)
MOLT_PARAM(unsigned, position, 0, "which one of that name", 0)
MOLT_PARAM(bool, missing, false, "name a function that the library has not", 0)
MOLT_PARAM(bool, waits, false, "wait while the program says so, and enable the patch then", 0)
MOLT_PARAM(std::string, loads, "", "a library that callbacks load and unload", 0)
MOLT_PARAM(int, pre_patch_ret, 0, "what pre_patch answers for the library", 0)

extern "C" {
static int new_answer() { return LP_VERSION; }
static int new_sleeper() {
  lp_wait_while_held();
  asm volatile("");
  return LP_VERSION;
}
}

static void note(const char* what, const molt_patch_target* target) {
  if (target->object == nullptr) return;
  lp_note(what, 0);
  const std::string library = loads.get();
  if (library.empty()) return;
  if (void* handle = dlopen(library.c_str(), RTLD_NOW)) dlclose(handle);
}
static int pre_patch(const molt_patch_target* target) {
  note("pre_patch", target);
  return target->object == nullptr ? 0 : pre_patch_ret;
}
static void post_patch(const molt_patch_target* target) { note("post_patch", target); }
static void pre_unpatch(const molt_patch_target* target) { note("pre_unpatch", target); }
static void post_unpatch(const molt_patch_target* target) { note("post_unpatch", target); }

static int start() {
  static molt_patch_func of_program[2] = {}, of_library[3] = {};
  if (sleeper) of_program[0] = molt::replacement("lp_sleeper", new_sleeper);
  static std::string name_of_function;
  name_of_function = function.get();
  of_library[0] = molt::replacement(name_of_function.c_str(), new_answer, position);
  if (missing) of_library[1] = molt::replacement("lp_nowhere", new_answer);
  static molt_patch_object objects[3] = {};
  int n = 0;
  const molt_patch_callbacks callbacks = {pre_patch, post_patch, pre_unpatch, post_unpatch};
  if (sleeper) objects[n++] = {nullptr, of_program, callbacks};
  static std::string name;
  name = object.get();
  objects[n++] = {name.c_str(), of_library, callbacks};
  if (waits) lp_wait_while_held();
  static const molt_patch patch = {sizeof(molt_patch), 0, objects, nullptr};
  return molt_patch_enable(&molt_this_module, &patch);
}
static void finish() {}

MOLT_MODULE(LP_NAME, "1.0", "Apache-2.0", "patches a library")
MOLT_LIVEPATCH_MODULE
MOLT_INIT(start)
MOLT_EXIT(finish)
