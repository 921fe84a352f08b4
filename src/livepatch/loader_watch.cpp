#include "livepatch/loader_watch.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <sched.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <set>
#include <utility>

#include "arch/x86_64/gate.hpp"
#include "arch/x86_64/instruction.hpp"
#include "arch/x86_64/pool.hpp"
#include "arch/x86_64/text.hpp"
#include "base/barrier.hpp"
#include "base/futex.hpp"
#include "base/own_fd.hpp"
#include "base/torture_step.hpp"
#include "livepatch/internal.hpp"

namespace molt::livepatch {
namespace {

// Of patches that name libraries.
std::atomic<unsigned> g_watching{0};
std::atomic<bool> g_exiting{false};
// The loader takes microseconds to unmap. In the child of a fork it may never end.
constexpr int loader_patience_ms = 1000;

// The names, each as often as patches have it. Leaf.
struct Names {
  std::mutex mutex;
  std::multiset<std::string> all;
  std::set<std::string> told;  // paths of which a message has been written
};
Names& names() {
  static Names* n = new Names;  // leaked on purpose: dlopen() may be called in the last moment
  return *n;
}

// --- slots ------------------------------------------------------------------------------------------

struct Slot {
  std::atomic<std::uintptr_t> init{0}, fini{0};  // the library's own
  std::uintptr_t bias = 0, dynamic = 0;          // 0: free
  elf::Range extent;
};
constexpr std::size_t most_libraries = 64;
Slot g_slots[most_libraries];
// Of the slots. Leaf: nothing is waited for with it.
std::mutex g_slots_mutex;

elf::Range extent_of(const Slot& slot) {
  std::lock_guard lock(g_slots_mutex);
  return slot.extent;
}

template <std::size_t I>
void come(int argc, char** argv, char** environment) {
  if (g_watching.load(std::memory_order_acquire) != 0) {
    Guest guest(__builtin_frame_address(0));
    if (guest) library_coming(extent_of(g_slots[I]));
  }
  const std::uintptr_t own = g_slots[I].init.load(std::memory_order_acquire);
  if (own != 0) reinterpret_cast<void (*)(int, char**, char**)>(own)(argc, argv, environment);
}

template <std::size_t I>
void go() {
  const std::uintptr_t own = g_slots[I].fini.load(std::memory_order_acquire);
  if (own != 0) reinterpret_cast<void (*)()>(own)();
  if (g_exiting.load(std::memory_order_acquire)) return;
  // Without patches too: what is known of its entries is to be forgotten.
  Guest guest(__builtin_frame_address(0));
  if (guest) library_going(extent_of(g_slots[I]));
}

struct Pair {
  void (*come)(int, char**, char**);
  void (*go)();
};
template <std::size_t... I>
constexpr std::array<Pair, sizeof...(I)> pairs(std::index_sequence<I...>) {
  return {{{come<I>, go<I>}...}};
}
constexpr auto g_pairs = pairs(std::make_index_sequence<most_libraries>());

// The dynamic section may be read-only by now: written as code is, without touching its protection.
bool write_word(const OwnFd& mem, std::uintptr_t address, std::uintptr_t value) {
  return mem.is_there() &&
         pwrite(mem.get(), &value, sizeof value, static_cast<off_t>(address)) == sizeof value;
}

template <class F>
bool visit_objects(F&& f) {
  return dl_iterate_phdr([](dl_phdr_info* info, std::size_t,
                            void* data) -> int { return (*static_cast<F*>(data))(*info) ? 1 : 0; },
                         &f) != 0;
}

std::uintptr_t dynamic_of(const dl_phdr_info& info) {
  for (int i = 0; i < info.dlpi_phnum; ++i) {
    if (info.dlpi_phdr[i].p_type == PT_DYNAMIC) return info.dlpi_addr + info.dlpi_phdr[i].p_vaddr;
  }
  return 0;
}

// Called with the loader's list locked: the library cannot be unmapped meanwhile. Allocates nothing.
bool hook_locked(const dl_phdr_info& info, const elf::Range& extent, const OwnFd& mem) {
  const std::uintptr_t dynamic = dynamic_of(info);
  if (dynamic == 0) return false;
  Slot* slot = nullptr;
  for (Slot& s : g_slots) {
    if (s.dynamic == dynamic) slot = &s;
    if (s.dynamic == 0 && slot == nullptr) slot = &s;
  }
  if (slot == nullptr) return false;
  const auto* init = static_cast<Elf64_Dyn*>(nullptr);
  const auto* fini = init;
  for (const auto* entry = reinterpret_cast<const Elf64_Dyn*>(dynamic); entry->d_tag != DT_NULL;
       ++entry) {
    if (entry->d_tag == DT_INIT) init = entry;
    if (entry->d_tag == DT_FINI) fini = entry;
  }
  if (init == nullptr || fini == nullptr) return false;
  const Pair& pair = g_pairs[static_cast<std::size_t>(slot - g_slots)];
  const auto ours = [&](auto* function) {
    return reinterpret_cast<std::uintptr_t>(function) - info.dlpi_addr;
  };
  // What the library says, not what we remember: one that went while nobody watched left its slot behind, and
  // this one may lie where it lay.
  if (init->d_un.d_ptr == ours(pair.come) && fini->d_un.d_ptr == ours(pair.go)) return true;
  slot->bias = info.dlpi_addr;
  slot->extent = extent;
  const std::uintptr_t fini_own = info.dlpi_addr + fini->d_un.d_ptr;
  slot->init.store(info.dlpi_addr + init->d_un.d_ptr, std::memory_order_release);
  slot->fini.store(fini_own, std::memory_order_release);
  const auto place = [](const Elf64_Dyn* entry) {
    return reinterpret_cast<std::uintptr_t>(&entry->d_un.d_ptr);
  };
  if (!write_word(mem, place(fini), ours(pair.go))) return false;
  if (!write_word(mem, place(init), ours(pair.come))) {
    write_word(mem, place(fini), fini_own - info.dlpi_addr);
    return false;
  }
  slot->dynamic = dynamic;
  return true;
}

// With the library in memory. What is not ours there is another library's, in the place of one that has gone.
void unhook(const Slot& slot, const OwnFd& mem) {
  const Pair& pair = g_pairs[static_cast<std::size_t>(&slot - g_slots)];
  const auto restore = [&](const Elf64_Dyn& entry, auto* ours, std::uintptr_t own) {
    if (slot.bias + entry.d_un.d_ptr != reinterpret_cast<std::uintptr_t>(ours)) return;
    write_word(mem, reinterpret_cast<std::uintptr_t>(&entry.d_un.d_ptr), own - slot.bias);
  };
  for (const auto* entry = reinterpret_cast<const Elf64_Dyn*>(slot.dynamic);
       entry->d_tag != DT_NULL; ++entry) {
    if (entry->d_tag == DT_INIT) {
      restore(*entry, pair.come, slot.init.load(std::memory_order_relaxed));
    } else if (entry->d_tag == DT_FINI) {
      restore(*entry, pair.go, slot.fini.load(std::memory_order_relaxed));
    }
  }
}

// Slots of libraries that have been unmapped are free again (W4).
void free_slots() {
  bool there[most_libraries] = {};
  visit_objects([&](const dl_phdr_info& info) {
    const std::uintptr_t dynamic = dynamic_of(info);
    for (std::size_t i = 0; i < most_libraries; ++i) {
      there[i] = there[i] || g_slots[i].dynamic == dynamic;
    }
    return false;
  });
  std::lock_guard lock(g_slots_mutex);
  for (std::size_t i = 0; i < most_libraries; ++i) {
    if (!there[i]) g_slots[i].dynamic = 0;
  }
}

// --- what the loader calls ------------------------------------------------------------------------------

const r_debug* g_debug = nullptr;

int loader_state() {
  return g_debug == nullptr
             ? int{r_debug::RT_CONSISTENT}
             : __atomic_load_n(reinterpret_cast<const int*>(&g_debug->r_state), __ATOMIC_ACQUIRE);
}

// W3: from the loader's call before it unmaps until the one behind. Of whoever has the loader's lock.
[[maybe_unused]] alignas(Guest) std::byte g_unmapper_memory[sizeof(Guest)];
Guest* g_unmapper = nullptr;

void hook_what_came() {
  std::vector<std::string> wanted;
  {
    std::lock_guard lock(names().mutex);
    wanted.assign(names().all.begin(), names().all.end());
  }
  for (const std::string& name : wanted) {
    auto library = elf::find_loaded(name);
    if (!library || library->is_program || watch_library(*library)) continue;
    {
      std::lock_guard lock(names().mutex);
      if (!names().told.insert(library->path).second) continue;
    }
    say("library '%s' cannot be watched, and is not patched", name.c_str());
  }
}

#ifdef MOLT_TORTURE_STEPS
// W3, of the thread that is about to unmap.
bool nobody_works() {
  const Engine& e = engine();
  Lock lock(engine().mutex);
  return e.token == 0 || e.token == gettid() || e.in_callback || e.guest == gettid();
}
#endif

void on_change() {
  full_fence();  // pairs with watch_begins(): the loader's state written, then this read
  if (g_watching.load(std::memory_order_seq_cst) == 0 && g_unmapper == nullptr) return;
  const int saved = errno;
  const int state = loader_state();
  if (state == r_debug::RT_DELETE && g_unmapper == nullptr) {
#ifndef MOLT_MUTATE_NO_UNMAP_WAIT
    g_unmapper = new (g_unmapper_memory) Guest(__builtin_frame_address(0));
#endif
    MOLT_TORTURE_UNTIL(!nobody_works(), 20);
    MOLT_TORTURE_HOLDS(nobody_works());
  } else if (state == r_debug::RT_CONSISTENT) {
    // Where it loads not as a guest: the loader has a lock that starting a thread needs, too.
    hook_what_came();
    if (Guest* guest = std::exchange(g_unmapper, nullptr)) {
      if (*guest) forget_vanished();
      free_slots();
      guest->~Guest();
    }
  }
  errno = saved;
}

// --- the jump ---------------------------------------------------------------------------------------------
//
//     before   brk: c3              ret, and 15 bytes of NOP up to the next function
//     1        brk+1: rel32         in any order: nobody executes what is behind a ret     S
//     2        brk:   e9            the one that counts                                     S
//     undone   2, then 1, in reverse

constexpr std::size_t alignment = 16;  // of functions, in the loader as everywhere
constexpr std::byte ret{0xc3}, jump{0xe9};

struct Jump {
  std::mutex mutex;
  arch::CodePool pool;
  std::uintptr_t at = 0;  // of the ret; 0: not written
  std::byte tail[4] = {};
  bool refused = false;
};
Jump& the_jump() {
  static Jump* j = new Jump;  // leaked on purpose, as the pool of site.cpp
  return *j;
}

const r_debug* find_debug() {
  const r_debug* found = nullptr;
  visit_objects([&](const dl_phdr_info& info) {  // the first one is the program
    const auto* entry = reinterpret_cast<const Elf64_Dyn*>(dynamic_of(info));
    for (; entry != nullptr && entry->d_tag != DT_NULL; ++entry) {
      if (entry->d_tag == DT_DEBUG) found = reinterpret_cast<const r_debug*>(entry->d_un.d_ptr);
    }
    return true;
  });
  return found;
}

// `ret`, an endbr64 in front of it or not, and then NOPs up to where the next function may begin.
Result<std::uintptr_t> empty_function(std::uintptr_t address) {
  const auto bytes = [](std::uintptr_t from, std::uintptr_t to) {
    return std::span(reinterpret_cast<const std::byte*>(from), to - from);
  };
  const std::uintptr_t end = (address + alignment) & ~(alignment - 1);
  arch::Instruction instruction;
  std::uintptr_t at = address;
  if (arch::decode(at, bytes(at, end), instruction) && instruction.endbr64) at += 4;
  if (*reinterpret_cast<const std::byte*>(at) != ret) {
    return fail(EBUSY, "a debugger, or another tool, has changed it");
  }
  for (std::uintptr_t behind = at + 1; behind < at + 5;) {
    if (!arch::decode(behind, bytes(behind, end), instruction) || !instruction.nop) {
      return fail(ENOTSUP, "what follows it is no padding");
    }
    behind += instruction.length;
  }
  return at;
}

Status write_jump_locked(Jump& j) {
  g_debug = find_debug();
  if (g_debug == nullptr || g_debug->r_brk == 0) return fail(ENOENT, "it does not say where");
  auto at = empty_function(g_debug->r_brk);
  if (!at) return pass(at);
  arch::text_setup();
  arch::TextWriter writer = arch::TextWriter::open();
  if (Status ok = writer.check({*at, *at + 5}); !ok) return ok;
  auto slot = j.pool.allocate({*at, *at + 5}, arch::jump_size);
  if (!slot) return pass(slot);
  std::byte code[arch::jump_size] = {};
  arch::write_jump(slot->address, reinterpret_cast<std::uintptr_t>(&on_change), code);
  if (Status ok = j.pool.publish(writer, *slot, code); !ok) return ok;
  const auto distance = static_cast<std::uint32_t>(slot->address - (*at + 5));
  std::memcpy(j.tail, reinterpret_cast<const void*>(*at + 1), sizeof j.tail);
  if (Status ok = writer.write(*at + 1, std::as_bytes(std::span(&distance, 1))); !ok) return ok;
  if (!arch::serialise_cores()) return fail(ENOTSUP, "cores cannot be serialised");
  if (Status ok = writer.write_byte(*at, jump); !ok) return ok;
  static_cast<void>(arch::serialise_cores());
  j.at = *at;
  return {};
}

bool write_jump() {
  Jump& j = the_jump();
  std::lock_guard lock(j.mutex);
  if (j.at != 0 || j.refused) return j.at != 0;
  Status ok = write_jump_locked(j);
  j.refused = !ok;
  if (!ok) {
    say("dlopen and dlclose cannot be followed: the dynamic loader's notice: %s",
        ok.error().detail);
    return false;
  }
  // Registered later than the loader's own, so called before it.
  static const int once = std::atexit([] { g_exiting.store(true, std::memory_order_release); });
  static_cast<void>(once);
  return true;
}

void keep_loaded(const elf::NamedObject& library) {
  void* handle = dlopen(library.path.c_str(), RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
  if (handle == nullptr) return;
  say("library '%s' stays loaded from now on", std::string(library.name()).c_str());
  dlclose(handle);
}

}  // namespace

bool watch_library(const elf::NamedObject& library) {
  if (the_jump().at == 0) return false;
  const OwnFd mem = own_open("/proc/self/mem", O_RDWR);
  if (!mem) return false;
  std::lock_guard lock(g_slots_mutex);
  bool hooked = true;  // there is nothing to watch if it has gone
  visit_objects([&](const dl_phdr_info& info) {
    if (info.dlpi_addr != library.bias || library.is_program) return false;
    hooked = hook_locked(info, library.extent, mem);
    return true;
  });
  return hooked;
}

void watch_begins(Patch& patch) {
  if (!patch.has_libraries()) return;
  for (const auto& object : patch.objects) {
    if (!object->is_program() && !object->known) patch.watched.push_back(object->name);
  }
  {
    std::lock_guard lock(names().mutex);
    names().all.insert(patch.watched.begin(), patch.watched.end());
  }
  const bool can_watch = write_jump();
  g_watching.fetch_add(1, std::memory_order_seq_cst);  // pairs with on_change()
  const Deadline patience = Deadline::in_ms(loader_patience_ms);
  while (loader_state() == r_debug::RT_DELETE && !patience.passed()) sched_yield();
  free_slots();  // of what went while nobody watched
  for (const auto& object : patch.objects) {
    if (object->is_program()) continue;
    // A patch file's code has the addresses of the library as it lies now.
    if (object->known) {
      keep_loaded(*object->known);
      continue;
    }
    {
      Lock lock(engine().mutex);
      if (engine().alive.contains(object->name)) continue;
    }
    auto library = elf::find_loaded(object->name);
    if (library && !(can_watch && watch_library(*library))) keep_loaded(*library);
  }
}

void watch_no_more(const Patch& patch) {
  g_watching.fetch_sub(1, std::memory_order_acq_rel);
  std::lock_guard lock(names().mutex);
  for (const std::string& name : patch.watched) names().all.erase(names().all.find(name));
}

void stop_watching() {
  Jump& j = the_jump();
  std::lock_guard lock(j.mutex);
  if (j.at == 0) return;
  arch::TextWriter writer = arch::TextWriter::open();
  if (!writer.write_byte(j.at, ret) || !arch::serialise_cores()) return;
  static_cast<void>(writer.write(j.at + 1, j.tail));
  static_cast<void>(arch::serialise_cores());
  j.at = 0;
  free_slots();
  const OwnFd mem = own_open("/proc/self/mem", O_RDWR);
  if (!mem) return;
  std::lock_guard slots(g_slots_mutex);
  visit_objects([&](const dl_phdr_info& info) {
    for (const Slot& slot : g_slots) {
      if (slot.dynamic != 0 && slot.dynamic == dynamic_of(info)) unhook(slot, mem);
    }
    return false;
  });
}

}  // namespace molt::livepatch
