// What bench/livepatch.cpp patches: new versions of functions of molt-bench's library.
#include <molt/livepatch.hpp>

extern "C" {
long bench_lp_new(long);
static void new_sleeper() {}
static long new_busy(long n) { return n + 2; }
}

// As small and as aligned as the old ones.
asm(R"(
        .pushsection .text
        .p2align 6
        .hidden bench_lp_new
        .globl bench_lp_new
        .type bench_lp_new, @function
bench_lp_new:
        lea 1(%rdi), %rax
        ret
        .size bench_lp_new, . - bench_lp_new
        .popsection
)");

MOLT_PARAM(bool, calls, false, "patch what is called in loops", 0)
MOLT_PARAM(bool, sleeper, false, "patch what a thread sleeps in", 0)
MOLT_PARAM(bool, busy, false, "patch what busy threads call", 0)

static int start() {
  static molt_patch_func funcs[6] = {};
  int n = 0;
  if (calls) {
    funcs[n++] = molt::replacement("bench_lp_prepared", bench_lp_new);
    funcs[n++] = molt::replacement("bench_lp_leaf", bench_lp_new);
    funcs[n++] = molt::replacement("bench_lp_exported", bench_lp_new);
  }
  if (sleeper) funcs[n++] = molt::replacement("bench_lp_sleeper", new_sleeper);
  if (busy) funcs[n++] = molt::replacement("bench_lp_busy", new_busy);
  static molt_patch_object objects[2] = {};
  objects[0] = {"libmolt-bench-host.so", funcs, {}};
  static const molt_patch patch = {sizeof(molt_patch), 0, objects, nullptr};
  return molt_patch_enable(&molt_this_module, &patch);
}
static void finish() {}

MOLT_MODULE("bench_livepatch", "1.0", "Apache-2.0", "what molt-bench patches")
MOLT_LIVEPATCH_MODULE
MOLT_INIT(start)
MOLT_EXIT(finish)
