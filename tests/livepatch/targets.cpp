#include "targets.hpp"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

Shared lp_shared;

int lp_answer(int argument) {
  asm volatile("" : "+r"(argument));
  return argument + 1;
}

extern "C" __attribute__((alias("lp_answer"))) int lp_answer_too(int argument) noexcept;

int lp_untouched(int argument) {
  asm volatile("" : "+r"(argument));
  return argument * 5 - 4;
}

__attribute__((patchable_function_entry(7, 5))) int lp_prepared() {
  asm volatile("");
  return 1;
}

int lp_inner() {
  asm volatile("");
  return 1;
}

int lp_outer(int depth) {
  const int first = lp_inner();
  const int nested = depth > 0 ? lp_outer(depth - 1) : first;
  asm volatile("");
  return first == 1 && nested == 1 && lp_inner() == 1 ? 1 : -1;
}

void lp_wait_while_held() {
  lp_shared.inside.fetch_add(1);
  while (lp_shared.hold.load() == 1) {
    syscall(SYS_futex, &lp_shared.hold, FUTEX_WAIT_PRIVATE, 1, nullptr, nullptr, 0);
  }
  if (auto* call = lp_shared.calls.exchange(nullptr)) lp_shared.called = call();
  lp_shared.inside.fetch_sub(1);
}

int lp_keeps() {
  void* volatile* returns_by = static_cast<void**>(__builtin_frame_address(0)) + 1;
  void* const before = *returns_by;
  lp_wait_while_held();
  return *returns_by == before && before == __builtin_return_address(0) ? 1 : -1;
}

int lp_sleeper() {
  lp_wait_while_held();
  asm volatile("");
  return 1;
}
