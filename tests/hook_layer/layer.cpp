#include "layer.hpp"

#include <stdlib.h>

#include <vector>

#include "base/barrier.hpp"
#include "hook/registry.hpp"
#include "threads/record.hpp"

namespace layer {

void set_up(bool membarrier) {
  if (!membarrier) setenv("MOLT_NO_MEMBARRIER", "1", 1);
  molt::barrier_setup();
  molt::threads::setup();
}

Owner* create(const char* module, molt_callback* callback) {
  return *molt::hooks::create(module, callback, callback + 1);
}
void destroy(Owner* owner) { molt::hooks::destroy(owner); }
void change(Owner* from, Owner* to) {
  if (!molt::hooks::change(from, to)) abort();
}
void begin_pause(Owner* owner) { molt::hooks::begin_pause(owner); }
void end_pause(Owner* owner) { molt::hooks::end_pause(owner); }
bool drain(Owner* owner, int timeout_ms) {
  std::vector<molt::hooks::Inside> inside;
  return molt::hooks::drain(owner, molt::Deadline::in_ms(timeout_ms), {}, inside);
}
void reap_dead() { molt::threads::reap_dead(); }
bool has_own_frame() {
  bool any = false;
  molt::threads::for_own_frames([&](const molt_entry*) { any = true; });
  return any;
}

}  // namespace layer
