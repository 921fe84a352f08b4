// registry.hpp - a library of the host's where modules leave callbacks behind.
#pragma once

#define REGISTRY_API extern "C" __attribute__((visibility("default")))

struct Registration {
  long number;
  void (*callback)();
};
// The callback that is in use, if any.
REGISTRY_API void (*g_on_event)();
// One on the heap.
REGISTRY_API Registration* g_registration;
