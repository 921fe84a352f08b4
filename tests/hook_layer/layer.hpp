// layer.hpp - the writer's side of the hook layer for tests that drive a chain by hand.
#pragma once

#include <molt/molt.h>
#include <molt/host.hpp>

namespace layer {

// Once, before the first hook: what the runtime does when it is loaded. `membarrier` false: as in a
// process where the kernel denies it.
void set_up(bool membarrier = true);

using Owner = molt_owner;
Owner* create(const char* module, molt_callback* callback);
void destroy(Owner* owner);
void change(Owner* from, Owner* to);
void begin_pause(Owner* owner);
void end_pause(Owner* owner);
bool drain(Owner* owner, int timeout_ms);
void reap_dead();
bool has_own_frame();

template <class Point>
molt_callback callback(typename Point::signature* fn) {
  return {Point::name,
          molt::signature_of<typename Point::signature>(),
          molt::fingerprint_of<typename Point::signature>(),
          reinterpret_cast<molt_fn>(fn),
          MOLT_ORDER_NORMAL,
          0,
          1,
          0,
          nullptr};
}

}  // namespace layer
