// The second version of flags_targets.c.
#include "../flags.h"

#include <molt/livepatch.hpp>

#include <string>

MOLT_PARAM(std::string, object, "", "where the functions are; none: the program", 0)

extern "C" {
static int new_inner() { return 2; }
static int new_outer(int depth) {
  const int first = fl_inner();
  const int nested = depth > 0 ? fl_outer(depth - 1) : first;
  asm volatile("");
  return first == 2 && nested == 2 && fl_inner() == 2 ? 2 : -1;
}
static int new_sleeps() {
  fl_wait();
  asm volatile("");
  return 2;
}
}

static int start() {
  static const molt_patch_func funcs[] = {molt::replacement("fl_inner", new_inner),
                                          molt::replacement("fl_outer", new_outer),
                                          molt::replacement("fl_sleeps", new_sleeps),
                                          {}};
  static std::string name;
  name = object.get();
  static molt_patch_object objects[2] = {};
  objects[0] = {name.empty() ? nullptr : name.c_str(), funcs, {}};
  static const molt_patch patch = {sizeof(molt_patch), 0, objects, nullptr};
  return molt_patch_enable(&molt_this_module, &patch);
}
static void finish() {}

MOLT_MODULE("lp_flags", "1.0", "Apache-2.0", "the second version of flags_targets.c")
MOLT_LIVEPATCH_MODULE
MOLT_INIT(start)
MOLT_EXIT(finish)
