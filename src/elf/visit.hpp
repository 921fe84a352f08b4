// visit.hpp - the dynamic loader's list of objects. Internal to elf/.
#pragma once

#include "elf/loaded.hpp"

#include <link.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>

namespace molt::elf {

inline constexpr std::uintptr_t page_mask = 4095;

// Calls f(const dl_phdr_info&, is_program) for each object until it returns true, which is then
// returned. The loader's lock is held: f must not allocate, since a host's allocator may itself walk
// the objects (heap profilers do) and then waits for that lock with a lock of its own held.
template <class F>
bool visit_objects(F&& f) {
  struct Visit {
    F& f;
    bool first = true;
  } visit{f};
  return dl_iterate_phdr(
             [](dl_phdr_info* info, std::size_t, void* data) -> int {
               auto& v = *static_cast<Visit*>(data);
               const bool is_program = std::exchange(v.first, false);
               return v.f(*info, is_program) ? 1 : 0;
             },
             &visit) != 0;
}

inline std::span<const Elf64_Phdr> segments_of(const dl_phdr_info& info) {
  return {info.dlpi_phdr, info.dlpi_phnum};
}

// The whole pages of a PT_LOAD segment.
inline Range pages_of(const dl_phdr_info& info, const Elf64_Phdr& segment) {
  const std::uintptr_t begin = info.dlpi_addr + segment.p_vaddr;
  return {begin & ~page_mask, (begin + segment.p_memsz + page_mask) & ~page_mask};
}

inline Range extent_of(const dl_phdr_info& info) {
  Range extent{UINTPTR_MAX, 0};
  for (const Elf64_Phdr& segment : segments_of(info)) {
    if (segment.p_type != PT_LOAD) continue;
    const Range pages = pages_of(info, segment);
    extent.begin = std::min(extent.begin, pages.begin);
    extent.end = std::max(extent.end, pages.end);
  }
  return extent;
}

}  // namespace molt::elf
