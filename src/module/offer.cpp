// offer.cpp - structures that modules offer to others, with the owner that is referenced while one
// is in use.

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/last_error.hpp"
#include "module/internal.hpp"

namespace molt::module {
namespace {

auto find_offer(std::string_view kind, std::string_view name) {
  auto& all = manager().offers;
  return std::find_if(all.begin(), all.end(),
                      [&](const Offer& offer) { return offer.kind == kind && offer.name == name; });
}

}  // namespace

void remove_offers_of(const Module& module) {
  Lock lock(manager().mutex);
  auto& all = manager().offers;
  all.erase(std::remove_if(all.begin(), all.end(),
                           [&](const Offer& offer) { return offer.owner == &module; }),
            all.end());
}

}  // namespace molt::module

using namespace molt::module;

extern "C" int molt_offer(molt_module* owner, const char* kind, const char* name,
                          const void* structure) {
  if (kind == nullptr || name == nullptr || structure == nullptr) {
    return molt::answer(molt::fail(EINVAL, "an offer needs a kind, a name and a structure"));
  }
  Lock lock(manager().mutex);
  if (find_offer(kind, name) != manager().offers.end()) {
    return molt::answer(molt::fail(EEXIST, "%s %s is offered already", kind, name));
  }
  manager().offers.push_back({kind, name, structure, find_descriptor(owner)});
  return molt::succeed();
}

extern "C" int molt_withdraw(molt_module* owner, const char* kind, const char* name) {
  Lock lock(manager().mutex);
  auto at = find_offer(kind ? kind : "", name ? name : "");
  if (at == manager().offers.end() || at->owner != find_descriptor(owner)) {
    return molt::answer(molt::fail(ENOENT, "%s %s is not offered by this module", kind, name));
  }
  manager().offers.erase(at);
  return molt::succeed();
}

extern "C" const void* molt_acquire(const char* kind, const char* name, molt_module** owner) {
  if (kind == nullptr || name == nullptr || owner == nullptr) return nullptr;
  Lock lock(manager().mutex);
  auto at = find_offer(kind, name);
  if (at == manager().offers.end()) return nullptr;
  if (at->owner != nullptr) {
    // Only a live module's: before that it is not finished, after that it is going.
    if (at->owner->state != MOLT_MODULE_STATE_LIVE) return nullptr;
    ++at->owner->refcnt;
    at->owner->was_used = true;
  }
  *owner = at->owner ? at->owner->descriptor : nullptr;
  return at->structure;
}

extern "C" void molt_release(molt_module* owner) { molt_module_put(owner); }
