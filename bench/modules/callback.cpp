// One callback of the chains; BENCH_K says which.
#include <molt/module.hpp>

#include "points.hpp"

#define BENCH_TEXT2(x) #x
#define BENCH_TEXT(x) BENCH_TEXT2(x)

static int callback(Context* context) noexcept { BENCH_BODY(BENCH_K); }

MOLT_MODULE("bench_callback_" BENCH_TEXT(BENCH_K), "1", "Apache-2.0", "one callback of a chain")
MOLT_HOOK(ChainPoint<16>, callback)
#if BENCH_K < 8
MOLT_HOOK(ChainPoint<8>, callback)
#endif
#if BENCH_K < 4
MOLT_HOOK(ChainPoint<4>, callback)
#endif
#if BENCH_K < 1
MOLT_HOOK(ChainPoint<1>, callback)
#endif
