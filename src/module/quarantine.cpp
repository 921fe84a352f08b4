// quarantine.cpp - under a sanitizer the newest unloaded modules stay mapped, dead.
//
// A report names functions when it is printed, long after it took down their addresses. Of a module
// that was unmapped meanwhile it has but numbers: who allocated the block that the host now uses after
// its end, or leaked, is lost. So here dlclose() comes later, and everything else that it does comes
// at once, by hand.
//
// Roles      quarantine(), at the end of an unload instead of dlclose(), on the thread that unloads.
// State      Manager::quarantined, oldest first. The store keeps the file: reports read names there.
// Invariants Q1 What is in quarantine has run its destructors, all of them, once: the entries of its
//               fini array, and DT_FINI, then lead to nothing(), as exit() and dlclose() call them too.
//            Q2 Nobody can run its code, which was proven as for dlclose(), and nobody does: its text is
//               inaccessible. A call that was not foreseen faults as it would after dlclose(), and the
//               report has the function's name.
//            Q3 Its variables are as in the file: what only they lead to is a leak, and reported as one.
//            Q4 At most quarantine_size() of them; the next one frees the oldest.
// Death      fork: the child has its parent's. exit: Q1.
// Refuses    What dlclose() might keep: the process may still run it. Then dlclose() shall decide, and
//            the module be unmapped or pinned as anywhere. So do modules with symbols beside the
//            descriptor, to which another object may be bound, and those that use up static TLS.
// Checked by tests/module/quarantine_test.cpp.

#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>

#include <cstdlib>

#include "audit/target.hpp"
#include "base/sanitizer.hpp"
#include "module/internal.hpp"

namespace molt::module {
namespace {

constexpr std::size_t size_under_sanitizer = 128;

// MOLT_QUARANTINE=N in the environment: so many modules, 0 none; also without a sanitizer.
std::size_t quarantine_size() {
  static const std::size_t size = [] {
    if (const char* value = std::getenv("MOLT_QUARANTINE")) {
      return static_cast<std::size_t>(std::strtoul(value, nullptr, 10));
    }
    return under_sanitizer() ? size_under_sanitizer : 0;
  }();
  return size;
}

void nothing() {}

// Where the loader finds what it calls at the object's end.
struct End {
  std::uintptr_t bias = 0;
  Elf64_Dyn* fini = nullptr;
  std::uintptr_t* array = nullptr;
  std::size_t count = 0;

  explicit End(const link_map& map) : bias(map.l_addr) {
    for (Elf64_Dyn* entry = map.l_ld; entry->d_tag != DT_NULL; ++entry) {
      if (entry->d_tag == DT_FINI) fini = entry;
      if (entry->d_tag == DT_FINI_ARRAYSZ) count = entry->d_un.d_val / sizeof *array;
      if (entry->d_tag == DT_FINI_ARRAY) {
        array = reinterpret_cast<std::uintptr_t*>(bias + entry->d_un.d_ptr);
      }
    }
    if (array == nullptr) count = 0;
  }

  // In the order of dlclose().
  void run() const {
    for (std::size_t i = count; i-- > 0;) reinterpret_cast<void (*)()>(array[i])();
    if (fini != nullptr) reinterpret_cast<void (*)()>(bias + fini->d_un.d_ptr)();
  }
  void clear() const {
    const auto address = reinterpret_cast<std::uintptr_t>(&nothing);
    for (std::size_t i = 0; i < count; ++i) array[i] = address;
    if (fini != nullptr) fini->d_un.d_ptr = address - bias;
  }
};

bool protect(const audit::Range& range, int protection) {
  return mprotect(reinterpret_cast<void*>(range.begin), range.size(), protection) == 0;
}

// A moment's right to write to what the loader has made read-only.
class Unsealed {
 public:
  explicit Unsealed(const audit::Target& target) : target_(target) {
    for (const audit::Range& data : target.data)
      open_ = open_ && protect(data, PROT_READ | PROT_WRITE);
  }
  ~Unsealed() {
    if (target_.sealed.size() != 0) protect(target_.sealed, PROT_READ);
  }
  Unsealed(const Unsealed&) = delete;
  Unsealed& operator=(const Unsealed&) = delete;
  explicit operator bool() const { return open_; }

 private:
  const audit::Target& target_;
  bool open_ = true;
};

// Back to what is in the file. Without a sealed part the loader's tables, and the entries, are among
// them: then they stay as they are.
void forget_variables(const audit::Target& target) {
  if (target.sealed.size() == 0) return;
  for (const audit::Range& data : target.data) {
    const audit::Range rest{target.sealed.contains(data.begin) ? target.sealed.end : data.begin,
                            data.end};
    if (rest.begin < rest.end) {
      madvise(reinterpret_cast<void*>(rest.begin), rest.size(), MADV_DONTNEED);
    }
  }
}

// But not the headers, which everybody reads who lists loaded objects: some linkers put them beside
// the code.
void lock_text(const audit::Target& target) {
  for (const audit::Range& text : target.text) {
    if (!text.contains(target.segments.front().begin)) protect(text, PROT_NONE);
  }
}

bool may_stay_bound(const Module& module) {
  return !module.hazards.empty() || !module.effects.empty() || module.has_symbols;
}

// The oldest beyond the limit.
std::optional<Quarantined> one_too_many() {
  Lock lock(manager().mutex);
  auto& all = manager().quarantined;
  if (all.size() <= quarantine_size()) return std::nullopt;
  Quarantined oldest = std::move(all.front());
  all.pop_front();
  return oldest;
}

}  // namespace

bool quarantine(Module& module) {
  if (quarantine_size() == 0 || module.handle == nullptr || module.linked || may_stay_bound(module))
    return false;
  const auto target = audit::target_of(module.handle, module.stored.path);
  if (!target) return false;
  {
    const Unsealed unsealed(*target);
    if (!unsealed) return false;
    const End end(*static_cast<const link_map*>(target->link_map));
    end.run();
    end.clear();
  }
  forget_variables(*target);
  lock_text(*target);
  {
    Lock lock(manager().mutex);
    manager().quarantined.push_back({module.stored, module.handle});
  }
  module.handle = nullptr;
  while (const auto oldest = one_too_many()) {
    dlclose(oldest->handle);
    store_forget(oldest->stored);
  }
  return true;
}

}  // namespace molt::module
