/* What is patched in programs of every compiler and with every set of flags that shapes a function. All
 * answer their version. */
#include "flags.h"

#ifdef __clang__
#define TARGET __attribute__((noinline, visibility("default")))
#else
#define TARGET __attribute__((noipa, visibility("default")))
#endif

TARGET int fl_inner(void) {
  int version = 1;
  __asm__ volatile("" : "+r"(version));
  return version;
}

/* Calls fl_inner twice with time in between: all must be of one version. */
TARGET int fl_outer(int depth) {
  const int first = fl_inner();
  const int nested = depth > 0 ? fl_outer(depth - 1) : first;
  __asm__ volatile("" ::: "memory");
  return first == 1 && nested == 1 && fl_inner() == 1 ? 1 : -1;
}

TARGET int fl_sleeps(void) {
  fl_wait();
  __asm__ volatile("" ::: "memory");
  return 1;
}
