// A program that is patched live, for a debugger and a profiler (names.sh): calls a function in the middle of
// the transition, which a thread asleep in an old version holds up, and after it: once each, or with an argument
// until it reads a byte.
#include <linux/futex.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "patching.hpp"
#include "targets.hpp"

// Where the entry leads to.
extern "C" __attribute__((used)) const unsigned char* lp_gate;
const unsigned char* lp_gate = nullptr;

extern "C" __attribute__((noipa)) void lp_in_transition() { asm volatile(""); }
extern "C" __attribute__((noipa)) void lp_after_transition() { asm volatile(""); }
// Once, or until the next line of the standard input: whether all were the new one's.
extern "C" __attribute__((noipa)) bool lp_calls_it(bool until_told) {
  bool all = true;
  pollfd input{STDIN_FILENO, POLLIN, 0};
  do {
    for (int i = 0; i < (until_told ? 100'000 : 1); ++i) all = lp_answer(0) == 2 && all;
  } while (until_told && poll(&input, 1, 0) == 0);
  char line;
  if (until_told) all = read(STDIN_FILENO, &line, 1) == 1 && all;
  return all;
}

namespace {

void must(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s: %s\n", what, molt_last_error());
  std::exit(1);
}

void find_gate() {
  const auto* entry = reinterpret_cast<const unsigned char*>(&lp_answer);
  if (entry[0] == 0xf3) entry += 4;  // endbr64
  must(entry[0] == 0xe9, "the entry is no jump");
  std::int32_t distance;
  __builtin_memcpy(&distance, entry + 1, sizeof distance);
  lp_gate = entry + 5 + distance;
}

}  // namespace

int main(int argc, char**) {
  const bool until_told = argc > 1;
  lp_shared.hold = 1;
  std::thread sleeper([] { lp_sleeper(); });
  must(eventually([] { return lp_shared.inside == 1; }), "no sleeper");
  must(load_patch("lp_two", "sleeper=1") == 0, "load");
  must(molt_patch_wait(0) != 0, "the transition is over");
  find_gate();
  lp_in_transition();
  if (until_told) std::puts("in transition"), std::fflush(stdout);
  must(lp_calls_it(until_told), "calls in the transition");
  lp_shared.hold = 0;
  syscall(SYS_futex, &lp_shared.hold, FUTEX_WAKE_PRIVATE, 100, nullptr, nullptr, 0);
  sleeper.join();
  must(molt_patch_wait(5000) == 0, "wait");
  lp_after_transition();
  if (until_told) std::puts("after it"), std::fflush(stdout);
  must(lp_calls_it(until_told), "calls after it");
  must(revert("lp_two").empty(), "revert");
  must(lp_answer(0) == 1, "the function itself");
  return 0;
}
