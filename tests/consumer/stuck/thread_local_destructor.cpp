// glibc keeps a library whose thread_local objects still have destructors to run.
#include <molt/module.hpp>

#include <string>

#include "../project/greeting.hpp"

static thread_local std::string last_greeting;

static int callback(int hour) {
  last_greeting.assign(static_cast<std::size_t>(hour), 'x');
  return static_cast<int>(last_greeting.size());
}

MOLT_MODULE("thread_local_destructor", "1.0", "Apache-2.0", "cannot be unloaded")
MOLT_HOOK(greeting_point, callback)
