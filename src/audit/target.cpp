#include "audit/target.hpp"

#include <dlfcn.h>
#include <link.h>

namespace molt::audit {

Result<Target> target_of(void* handle, const std::string& file) {
  link_map* map = nullptr;
  if (handle == nullptr || dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0) {
    return fail(EINVAL, "not an object of the dynamic loader's");
  }
  Target target;
  target.bias = map->l_addr;
  target.file = file;
  target.link_map = map;
  std::uintptr_t symbols = 0, strings = 0, strings_bytes = 0;
  for (const auto* entry = map->l_ld; entry->d_tag != DT_NULL; ++entry) {
    if (entry->d_tag == DT_SYMTAB) symbols = entry->d_un.d_ptr;
    if (entry->d_tag == DT_STRTAB) strings = entry->d_un.d_ptr;
    if (entry->d_tag == DT_STRSZ) strings_bytes = entry->d_un.d_val;
  }
  // The loader has made addresses of what the file has.
  target.names = {symbols != 0 && symbols < strings ? symbols : strings, strings + strings_bytes};
  struct Wanted {
    const link_map* map;
    Target* target;
  } wanted{map, &target};
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* data) {
        auto& [object, into] = *static_cast<Wanted*>(data);
        // Its dynamic table is where nobody else's is.
        bool is_it = false;
        for (const auto* s = info->dlpi_phdr; s != info->dlpi_phdr + info->dlpi_phnum; ++s) {
          is_it |= s->p_type == PT_DYNAMIC &&
                   info->dlpi_addr + s->p_vaddr == reinterpret_cast<std::uintptr_t>(object->l_ld);
        }
        if (!is_it) return 0;
        for (const auto* s = info->dlpi_phdr; s != info->dlpi_phdr + info->dlpi_phnum; ++s) {
          if (s->p_type != PT_LOAD) continue;
          constexpr std::uintptr_t page = 4095;
          const std::uintptr_t begin = info->dlpi_addr + s->p_vaddr;
          const Range range{begin & ~page, (begin + s->p_memsz + page) & ~page};
          into->segments.push_back(range);
          if ((s->p_flags & PF_X) != 0) into->text.push_back(range);
        }
        return 1;
      },
      &wanted);
  if (target.segments.empty()) return fail(EINVAL, "the object has no segments");
  return target;
}

}  // namespace molt::audit
