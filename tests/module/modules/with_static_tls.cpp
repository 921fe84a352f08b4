// A thread-local variable in the place that a process has for those of its start.
#include <molt/module.hpp>

#include "../points.hpp"

static thread_local volatile int scratch[64] __attribute__((tls_model("initial-exec")));

static int call(int argument) {
  scratch[argument & 63] = argument;
  return scratch[argument & 63];
}

MOLT_MODULE("with_static_tls", "1", "Apache-2.0", "has an initial-exec thread_local")
MOLT_HOOK(probe_point, call)
