// The same callbacks as plain functions of the program, in a file of their own so that they are
// called, not inlined.
#include "direct.hpp"

#define BENCH_DIRECT(k) \
  int direct_##k(Context* context) { BENCH_BODY(k); }
BENCH_DIRECT(0)
BENCH_DIRECT(1)
BENCH_DIRECT(2)
BENCH_DIRECT(3)
BENCH_DIRECT(4)
BENCH_DIRECT(5)
BENCH_DIRECT(6)
BENCH_DIRECT(7)
BENCH_DIRECT(8)
BENCH_DIRECT(9)
BENCH_DIRECT(10)
BENCH_DIRECT(11)
BENCH_DIRECT(12)
BENCH_DIRECT(13)
BENCH_DIRECT(14)
BENCH_DIRECT(15)
