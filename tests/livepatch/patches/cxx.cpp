// The second version of what cxx_targets.hpp declares.
#include "../cxx_targets.hpp"

#include <molt/livepatch.hpp>

#include "../targets.hpp"

namespace {

int new_throws(int* destroyed) {
  struct Noted {
    int* destroyed;
    ~Noted() { *destroyed += 100; }
  } noted{destroyed};
  throw CxError(2);
}

int new_catches(int* destroyed) {
  try {
    return cx_throws(destroyed);
  } catch (const std::runtime_error& error) {
    const auto* mine = dynamic_cast<const CxError*>(&error);
    return mine != nullptr ? mine->number * 10 + 2 : -1;
  }
}

int new_area(CxShape* shape) { return shape->made_by * 10 + 2; }

int new_twice(int value) { return value + value + 100; }

int start_value() { return 40; }
struct PerThread {
  int value = start_value();
  ~PerThread() { lp_shared.inside.fetch_add(1000); }
};
int new_counts() {
  static int calls = start_value();  // guarded: not a constant
  static thread_local PerThread mine;
  return ++calls * 1000 + ++mine.value;
}

int new_recurses(int depth) {
  if (depth > 0) {
    const int below = cx_recurses(depth - 1);
    asm volatile("" ::: "memory");
    return below % 10 == 2 ? below : -1;
  }
  lp_wait_while_held();
  return 2;
}

void new_jumps(std::jmp_buf* to) { std::longjmp(*to, 2); }
int new_version() { return 2; }

int start() {
  static molt_patch_func funcs[] = {
      molt::replacement("_Z9cx_throwsPi", new_throws),
      molt::replacement("_Z10cx_catchesPi", new_catches),
      molt::replacement("_ZN7CxShape4areaEv", new_area),
      molt::replacement("_Z8cx_twiceIiET_S0_", new_twice),
      molt::replacement("_Z9cx_countsv", new_counts),
      molt::replacement("_Z11cx_recursesi", new_recurses),
      molt::replacement("_Z8cx_jumpsPA1_13__jmp_buf_tag", new_jumps),
      molt::replacement("_Z10cx_versionv", new_version),
      {},
  };
  static molt_patch_object objects[] = {{nullptr, funcs, {}}, {}};
  static const molt_patch patch = {sizeof(molt_patch), 0, objects, nullptr};
  return molt_patch_enable(&molt_this_module, &patch);
}
void finish() {}

}  // namespace

MOLT_MODULE(LP_NAME, "1.0", "Apache-2.0", "C++ functions")
MOLT_LIVEPATCH_MODULE
MOLT_INIT(start)
MOLT_EXIT(finish)
