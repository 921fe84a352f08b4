// No patch: answers at a hook.
#include "../hooked.hpp"

#include <molt/module.hpp>

static int answer(int number) { return number + 100; }
MOLT_MODULE(LP_NAME, "1.0", "Apache-2.0", "answers at a hook")
MOLT_HOOK(lp_point, answer)
static void finish() {}
MOLT_EXIT(finish)
