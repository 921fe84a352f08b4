// Replaces every function that this module and the program have both, by this module's.
#include <elf.h>
#include <link.h>

#include <cerrno>
#include <cstring>
#include <molt/livepatch.hpp>

#include "../self.cpp"

extern "C" const char __ehdr_start[];

MOLT_MODULE("lp_self", "1.0", "Apache-2.0", "everything by its own copy")
MOLT_LIVEPATCH_MODULE

constexpr std::size_t most = 4000;
static molt_patch_func funcs[most + 1];

static std::size_t list_all_functions() {
  const char* strings = nullptr;
  const ElfW(Sym)* symbols = nullptr;
  std::uint32_t count = 0;
  for (const ElfW(Dyn)* entry = _DYNAMIC; entry->d_tag != DT_NULL; ++entry) {
    const auto* at = reinterpret_cast<const char*>(entry->d_un.d_ptr);
    if (entry->d_tag == DT_STRTAB) strings = at;
    if (entry->d_tag == DT_SYMTAB) symbols = reinterpret_cast<const ElfW(Sym)*>(at);
    if (entry->d_tag == DT_HASH) count = reinterpret_cast<const std::uint32_t*>(at)[1];
  }
  std::size_t found = 0;
  for (std::uint32_t i = 1; i < count && found < most; ++i) {
    const ElfW(Sym)& symbol = symbols[i];
    if (ELF64_ST_TYPE(symbol.st_info) != STT_FUNC || symbol.st_shndx == SHN_UNDEF) continue;
    const char* name = strings + symbol.st_name;
    // The module's own: what it is made of as a module.
    if (std::strncmp(name, "_Z", 2) != 0 || std::strstr(name, "molt") != nullptr) continue;
    auto* copy = reinterpret_cast<molt_fn>(const_cast<char*>(__ehdr_start) + symbol.st_value);
    funcs[found++] = {name, 0, copy, 0, 0};
  }
  return found;
}

static int start() {
  const std::size_t count = list_all_functions();
  static molt_patch_object objects[2] = {};
  objects[0].funcs = funcs;
  static const molt_patch patch = {sizeof(molt_patch), 0, objects, nullptr};
  molt_log(&molt_this_module, "%zu functions", count);
  if (count < 500) return -EINVAL;  // the compiler has made of it what this test is not about
  return molt_patch_enable(&molt_this_module, &patch);
}
static void finish() {}
MOLT_INIT(start)
MOLT_EXIT(finish)
