// A thread_local with a destructor keeps its library mapped as long as a thread has it.
#include <molt/module.hpp>

#include <string>

#include "../points.hpp"

static thread_local std::string remembered;

static int call(int argument) {
  remembered = std::string(static_cast<std::size_t>(argument), 'x');
  return static_cast<int>(remembered.size());
}
static int start() { return 0; }
static void finish() {}

MOLT_MODULE("with_thread_local", "1", "Apache-2.0", "has a thread_local with a destructor")
MOLT_INIT(start)
MOLT_EXIT(finish)
MOLT_HOOK(probe_point, call)
