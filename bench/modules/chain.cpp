// One of the sixteen modules on the measured chains: CALLBACK is its number. It is on every chain
// that is long enough to have a callback of that number.

#include "../points.hpp"

#include <molt/module.hpp>

namespace {

int check(const bench::Request* request) { return bench::object<CALLBACK>(request); }

}  // namespace

#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)

MOLT_MODULE("bench_chain_" TEXT(CALLBACK), "1.0", "Apache-2.0", "one callback of a measured chain")
#if CALLBACK < 1
MOLT_HOOK(bench::chain1_point, check)
MOLT_HOOK(bench::chain1_rare_point, check)
#endif
#if CALLBACK < 4
MOLT_HOOK(bench::chain4_point, check)
#endif
#if CALLBACK < 8
MOLT_HOOK(bench::chain8_point, check)
#endif
MOLT_HOOK(bench::chain16_point, check)
