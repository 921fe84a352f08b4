// states.cpp - what a patch says of itself that is more than functions (KERNEL.md P8).

#include <algorithm>

#include "livepatch/internal.hpp"

namespace molt::livepatch {
namespace {

molt_patch_state* find_state(const Patch& patch, unsigned long id) {
  const auto at = std::find_if(patch.states.begin(), patch.states.end(),
                               [&](const molt_patch_state* s) { return s->id == id; });
  return at == patch.states.end() ? nullptr : *at;
}

}  // namespace
}  // namespace molt::livepatch

using namespace molt::livepatch;

extern "C" molt_patch_state* molt_patch_get_state(molt_module* owner, unsigned long id) {
  Lock lock(engine().mutex);
  for (const PatchPtr& patch : engine().patches) {
    if (patch->module == owner) return find_state(*patch, id);
  }
  return nullptr;
}

extern "C" molt_patch_state* molt_patch_get_prev_state(unsigned long id) {
  Engine& e = engine();
  Lock lock(e.mutex);
  if (!e.transition.active()) {
    lock.unlock();
    say("the previous state %lu was asked for, but no transition is under way", id);
    return nullptr;
  }
  molt_patch_state* last = nullptr;
  for (const PatchPtr& patch : e.patches) {
    if (patch == e.transition.patch) break;
    if (molt_patch_state* state = find_state(*patch, id)) last = state;
  }
  return last;
}
