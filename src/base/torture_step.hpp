// torture_step.hpp - where the torture's builds stop for a moment, so that a race hits that would need luck.
//
// Elsewhere nothing is left of it. A build with a planted fault and the sound one stop at the same places:
// what only the stop would break, the sound one shows.
#pragma once

#ifdef MOLT_TORTURE_STEPS
#include <stdio.h>
#include <time.h>
#include <unistd.h>
#define MOLT_TORTURE_STEP(us)            \
  do {                                   \
    const timespec moment{0, (us)*1000}; \
    nanosleep(&moment, nullptr);         \
  } while (false)
// Until another thread has done what the race waits for; on a busy machine no fixed time would do. At most
// so long, as that thread may be waiting for this one.
#define MOLT_TORTURE_UNTIL(condition, most_ms) \
  for (int steps = (most_ms)*2; steps > 0 && !(condition); --steps) MOLT_TORTURE_STEP(500)
// What the race would break, where only the core can see it.
#define MOLT_TORTURE_HOLDS(condition)                   \
  do {                                                  \
    if (condition) break;                               \
    fprintf(stderr, "VIOLATION: not %s\n", #condition); \
    _exit(1);                                           \
  } while (false)
#else
#define MOLT_TORTURE_STEP(us) static_cast<void>(0)
#define MOLT_TORTURE_UNTIL(condition, most_ms) static_cast<void>(0)
#define MOLT_TORTURE_HOLDS(condition) static_cast<void>(0)
#endif
