#include "linker/symbols.hpp"

#include <dlfcn.h>
#include <errno.h>
#include <link.h>

#include <string>

#include "abi/patch_file.hpp"

namespace molt::linker {
namespace {

// Blocks that are at the same place below every thread's pointer are near it; what is allocated when a
// thread first asks lies on the heap.
constexpr std::uintptr_t static_tls_room = 64 * 1024;

std::uintptr_t thread_pointer() {
  return reinterpret_cast<std::uintptr_t>(__builtin_thread_pointer());
}

std::optional<std::int64_t> distance(std::uintptr_t address) {
  const std::uintptr_t here = thread_pointer();
  if (address >= here || here - address > static_tls_room) return std::nullopt;
  return static_cast<std::int64_t>(address - here);
}

struct Search {
  const elf::NamedObject* target = nullptr;
  std::uintptr_t address = 0;
  TlsPlace place;
  bool found = false;
};

std::uint64_t tls_bytes(const dl_phdr_info& info) {
  for (const auto* s = info.dlpi_phdr; s != info.dlpi_phdr + info.dlpi_phnum; ++s) {
    if (s->p_type == PT_TLS) return s->p_memsz;
  }
  return 0;
}

int look(dl_phdr_info* info, std::size_t, void* data) {
  auto& search = *static_cast<Search*>(data);
  const std::uint64_t bytes = tls_bytes(*info);
  if (bytes == 0) return 0;
  const auto block = reinterpret_cast<std::uintptr_t>(info->dlpi_tls_data);
  if (search.target != nullptr) {
    bool is_it = false;
    for (const auto* s = info->dlpi_phdr; s != info->dlpi_phdr + info->dlpi_phnum; ++s) {
      is_it |= s->p_type == PT_LOAD && s->p_memsz != 0 &&
               search.target->extent.contains(info->dlpi_addr + s->p_vaddr);
    }
    if (!is_it || search.place.offset > bytes) return 0;
  } else {
    if (block == 0 || search.address - block >= bytes) return 0;
    search.place.offset = search.address - block;
  }
  search.place.module = info->dlpi_tls_modid;
  if (block != 0) search.place.from_thread = distance(block + search.place.offset);
  search.found = true;
  return 1;
}

}  // namespace

Result<std::uintptr_t> find_dynamic(const elf::NamedObject& target,
                                    const patchfile::Symbol& symbol) {
  const std::string name(symbol.name), version(symbol.version);
  const auto look_up = [&](void* scope) {
    return version.empty() ? dlsym(scope, name.c_str())
                           : dlvsym(scope, name.c_str(), version.c_str());
  };
  // First what the program sees; a library that was loaded for itself has a scope of its own.
  void* found = look_up(RTLD_DEFAULT);
  if (found == nullptr && !target.is_program) {
    if (void* scope = dlopen(target.path.c_str(), RTLD_NOW | RTLD_NOLOAD)) {
      found = look_up(scope);
      dlclose(scope);
    }
  }
  // Not in the program's scope where it was attached to.
  if (found == nullptr && symbol.library == patch_file::runtime_library) {
    Dl_info here;
    void* scope = dladdr(reinterpret_cast<void*>(&find_tls_at), &here) != 0
                      ? dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD)
                      : nullptr;
    if (scope != nullptr) {
      found = look_up(scope);
      dlclose(scope);
    }
  }
  if (found == nullptr) {
    return fail(ENOENT, "symbol %s%s%s is in none of the process's libraries (it was in %s)",
                name.c_str(), version.empty() ? "" : "@", version.c_str(),
                symbol.library.empty() ? "none" : std::string(symbol.library).c_str());
  }
  return reinterpret_cast<std::uintptr_t>(found);
}

Result<TlsPlace> find_tls(const elf::NamedObject& target, std::uint64_t offset) {
  Search search;
  search.target = &target;
  search.place.offset = offset;
  dl_iterate_phdr(look, &search);
  if (!search.found) {
    return fail(ENOENT, "%.100s has no thread-local variable at offset %#llx",
                std::string(target.name()).c_str(), static_cast<unsigned long long>(offset));
  }
  return search.place;
}

Result<TlsPlace> find_tls_at(std::uintptr_t address) {
  Search search;
  search.address = address;
  dl_iterate_phdr(look, &search);
  if (!search.found) return fail(ENOENT, "no object has a thread-local variable at %#zx", address);
  return search.place;
}

}  // namespace molt::linker
