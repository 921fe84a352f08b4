#include "audit/target.hpp"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>

extern "C" void __cxa_finalize(void*);

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
  // The loader has made addresses of what the file has. Linkers put these tables first.
  std::uintptr_t tables_end = 0;
  std::uintptr_t at[3] = {}, bytes[3] = {};
  const auto* entry = map->l_ld;
  for (; entry->d_tag != DT_NULL; ++entry) {
    constexpr std::int64_t begins[] = {DT_STRTAB, DT_RELA, DT_JMPREL};
    constexpr std::int64_t sizes[] = {DT_STRSZ, DT_RELASZ, DT_PLTRELSZ};
    for (int i = 0; i < 3; ++i) {
      if (entry->d_tag == begins[i]) at[i] = entry->d_un.d_ptr;
      if (entry->d_tag == sizes[i]) bytes[i] = entry->d_un.d_val;
    }
  }
  for (int i = 0; i < 3; ++i) tables_end = std::max(tables_end, at[i] + bytes[i]);
  target.tables.push_back(
      {reinterpret_cast<std::uintptr_t>(map->l_ld), reinterpret_cast<std::uintptr_t>(entry + 1)});
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
          constexpr std::uintptr_t page = 4095;
          if (s->p_type == PT_GNU_RELRO) {
            into->sealed = {(info->dlpi_addr + s->p_vaddr) & ~page,
                            (info->dlpi_addr + s->p_vaddr + s->p_memsz) & ~page};
          }
          const std::uintptr_t begin = info->dlpi_addr + s->p_vaddr;
          // Where unwinders look functions up. Lists of objects have its address, which they go by while the
          // object is there, and which stays in blocks that such a list had once.
          if (s->p_type == PT_GNU_EH_FRAME) into->tables.push_back({begin, begin + s->p_memsz});
          if (s->p_type != PT_LOAD) continue;
          const Range range{begin & ~page, (begin + s->p_memsz + page) & ~page};
          into->segments.push_back(range);
          // The rest of its pages is nobody's.
          into->tables.push_back({range.begin, begin});
          into->tables.push_back({begin + s->p_memsz, range.end});
          if ((s->p_flags & PF_W) != 0) into->data.push_back(range);
          if ((s->p_flags & PF_X) != 0) into->text.push_back(range);
        }
        return 1;
      },
      &wanted);
  if (target.segments.empty()) return fail(EINVAL, "the object has no segments");
  const Range first = target.segments.front();
  if (first.contains(tables_end - 1)) target.tables.push_back({first.begin, tables_end});
  return target;
}

void run_destructors(const Target& target) {
  for (const Range& data : target.data) {
    for (std::uintptr_t at = data.begin; at < data.end; at += sizeof at) {
      // &__dso_handle; for another word that holds its own address nothing is registered.
      auto* word = reinterpret_cast<std::uintptr_t*>(at);
      if (*word == at) __cxa_finalize(word);
    }
  }
}

}  // namespace molt::audit
