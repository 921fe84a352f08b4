#include "linker/unwinders.hpp"

#include <dlfcn.h>

#include <algorithm>

extern "C" {
void __register_frame(void*);
void __deregister_frame(void*);  // also returns the object that libgcc made; nobody needs it
}

namespace molt::linker {
namespace {

using Call = void (*)(void*);
struct Unwinder {
  Call add, remove;
  bool operator==(const Unwinder&) const = default;
};

Unwinder in_scope(void* scope) {
  return {reinterpret_cast<Call>(dlsym(scope, "__register_frame")),
          reinterpret_cast<Call>(dlsym(scope, "__deregister_frame"))};
}

// Linked into the program: not exported.
Unwinder inside(const elf::NamedObject& object) {
  const auto symbols = elf::read_symbols(object);
  if (!symbols) return {};
  const auto add = symbols->find("__register_frame");
  const auto remove = symbols->find("__deregister_frame");
  if (!add || !remove) return {};
  return {reinterpret_cast<Call>(add->address), reinterpret_cast<Call>(remove->address)};
}

std::vector<Unwinder> all(const elf::NamedObject& target) {
  std::vector<Unwinder> found;
  const auto note = [&](Unwinder one) {
    if (one.add == nullptr || one.remove == nullptr) return;
    if (std::find(found.begin(), found.end(), one) == found.end()) found.push_back(one);
  };
  note({__register_frame, __deregister_frame});
  note(in_scope(RTLD_DEFAULT));
  if (void* library = dlopen("libgcc_s.so.1", RTLD_NOW | RTLD_NOLOAD)) {
    note(in_scope(library));
    dlclose(library);
  }
  note(inside(target));
  return found;
}

}  // namespace

std::vector<Call> register_frames(std::uintptr_t frames, const elf::NamedObject& target) {
  std::vector<Call> told;
  for (const Unwinder& unwinder : all(target)) {
    unwinder.add(reinterpret_cast<void*>(frames));
    told.push_back(unwinder.remove);
  }
  return told;
}

void forget_frames(std::uintptr_t frames, const std::vector<Call>& unwinders) {
  for (Call remove : unwinders) remove(reinterpret_cast<void*>(frames));
}

}  // namespace molt::linker
