// One version of the functions: livepatch LPT_VERSION.
#include <molt/livepatch.hpp>

#include "activation.hpp"

using livepatch_torture::Note;

MOLT_PARAM(bool, replace, false, "atomic replace", 0)
MOLT_PARAM(bool, immediate, false, "immediate patch", 0)

extern "C" {
static void new_outer(Note* note) { livepatch_torture::outer<LPT_VERSION>(note); }
static void new_middle(Note* note) { livepatch_torture::middle<LPT_VERSION>(note); }
static void new_inner(Note* note) { livepatch_torture::inner<LPT_VERSION>(note); }
}

MOLT_MODULE(LPT_NAME, "1.0", "Apache-2.0", "another version of the torture's functions")
MOLT_LIVEPATCH_MODULE

static int start() {
  static molt_patch_func funcs[4] = {};
  funcs[0] = molt::replacement("lpt_outer", new_outer);
  funcs[1] = molt::replacement("lpt_middle", new_middle);
  funcs[2] = molt::replacement("lpt_inner", new_inner);
  static molt_patch_object objects[2] = {};
  objects[0].funcs = funcs;
  static molt_patch patch = {sizeof(molt_patch), 0, objects, nullptr};
  patch.flags = replace * MOLT_PATCH_REPLACE | immediate * MOLT_PATCH_IMMEDIATE;
  return molt_patch_enable(&molt_this_module, &patch);
}
static void finish() {}
MOLT_INIT(start)
MOLT_EXIT(finish)
