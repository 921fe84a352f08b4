#include <molt/module.hpp>

#include "greeting.hpp"

static int good_morning(int hour) { return 100 + hour; }

MOLT_MODULE("polite", "1.0", "Apache-2.0", "answers greetings")
MOLT_HOOK(greeting_point, good_morning)
