#include "threads/start.hpp"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <span>

#include "base/sanitizer.hpp"

namespace molt::threads {
namespace {

// The memory of the program or library that defines a symbol; empty: none does.
Extent object_of(const char* symbol) {
  struct Search {
    std::uintptr_t address;
    Extent found;
  } search{reinterpret_cast<std::uintptr_t>(dlsym(RTLD_DEFAULT, symbol)), {}};
  if (search.address == 0) return {};
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* given) {
        Search& wanted = *static_cast<Search*>(given);
        Extent object{~std::uintptr_t{0}, 0};
        for (const ElfW(Phdr) & part : std::span(info->dlpi_phdr, info->dlpi_phnum)) {
          if (part.p_type != PT_LOAD) continue;
          const std::uintptr_t begin = info->dlpi_addr + part.p_vaddr;
          object.begin = std::min(object.begin, begin);
          object.end = std::max(object.end, begin + part.p_memsz);
        }
        if (!object.contains(wanted.address)) return 0;
        wanted.found = object;
        return 1;
      },
      &search);
  return search.found;
}

// Where the wrapper runs. What it sleeps in are system calls of the sanitizer's own.
struct Wrapper {
  Extent runtime = object_of("__asan_init");
  Extent libc = object_of("pthread_getattr_np");
  Extent loader = object_of("__tls_get_addr");
};
const Wrapper& wrapper() {
  static const Wrapper found;
  return found;
}

}  // namespace

#ifdef MOLT_MUTATE_ALL_BEGUN
bool starts_at_once() { return true; }
#else
bool starts_at_once() { return !under_sanitizer() || !wrapper().runtime; }
#endif

void saw_asleep(Thread& thread, std::uintptr_t pc) {
  if (!thread.has_begun) thread.has_begun = !wrapper().runtime.contains(pc);
}

void saw_running(Thread& thread, std::uintptr_t pc) {
  if (thread.has_begun) return;
  const Wrapper& w = wrapper();
  thread.has_begun = !w.runtime.contains(pc) && !w.libc.contains(pc) && !w.loader.contains(pc);
}

}  // namespace molt::threads
