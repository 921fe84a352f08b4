// A module that is no livepatch.
#include <molt/module.hpp>

MOLT_MODULE("lp_plain", "1.0", "Apache-2.0", "does nothing")
