// Other versions of functions that are hooked, too.
#include <molt/livepatch.hpp>

#include "../victim.hpp"

MOLT_PARAM(bool, nested, false, "replace victim_outer and victim_inner", 0)
MOLT_PARAM(bool, sleeps, false, "replace victim_sleeps", 0)
MOLT_PARAM(bool, local, false, "replace the program's own functions_test_local", 0)

extern "C" {
static long new_add(long a, long b) { return a * 3 + b + 1000; }
static long new_inner() { return 2; }
static long new_outer() {
  const long first = victim_inner();
  victim_spins(100);
  const long second = victim_inner();
  asm volatile("");
  return first == 2 && second == 2 ? 2 : -1;
}
static int new_sleeps(std::atomic<unsigned>* word) { return static_cast<int>(*word) + 1000; }
static long new_local(long a) { return a + 100; }
}

MOLT_MODULE(NAME, "1.0", "Apache-2.0", "other answers")
MOLT_LIVEPATCH_MODULE

static int start() {
  static molt_patch_func in_library[5] = {};
  int n = 0;
  in_library[n++] = molt::replacement("victim_add", new_add);
  if (nested) {
    in_library[n++] = molt::replacement("victim_outer", new_outer);
    in_library[n++] = molt::replacement("victim_inner", new_inner);
  }
  if (sleeps) in_library[n++] = molt::replacement("victim_sleeps", new_sleeps);
  static const molt_patch_func in_program[] = {molt::replacement("functions_test_local", new_local),
                                               {}};
  static molt_patch_object objects[3] = {};
  objects[0] = {"libinterpose_victim.so", in_library, {}};
  if (local) objects[1].funcs = in_program;
  static molt_patch patch = {sizeof(molt_patch), 0, objects, nullptr};
  return molt_patch_enable(&molt_this_module, &patch);
}
static void finish() {}
MOLT_INIT(start)
MOLT_EXIT(finish)
