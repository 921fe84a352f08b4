// init leaves by an exception.
#include <molt/module.hpp>

#include <stdexcept>

static int start() { throw std::runtime_error("no good today"); }
static void finish() {}

MOLT_MODULE("throwing", "1", "Apache-2.0", "throws in init")
MOLT_INIT(start)
MOLT_EXIT(finish)
