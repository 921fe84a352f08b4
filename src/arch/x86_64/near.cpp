#include "arch/x86_64/near.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <vector>

#include "arch/x86_64/maps.hpp"
#include "arch/x86_64/refuse.hpp"

namespace molt::arch {
namespace {

// What a heap or a stack may still grow into.
constexpr std::size_t heap_room = std::size_t{1} << 30;
constexpr std::size_t stack_room = std::size_t{64} << 20;
// Less than 2 GiB: instructions have ends, slots have sizes.
constexpr std::int64_t reach = (std::int64_t{1} << 31) - (1 << 20);
constexpr CodeAddress lowest = 64 * 1024;  // as mmap_min_addr
constexpr CodeAddress highest = 0x7fff'ffff'f000;

std::uint64_t distance(CodeAddress block, CodeRange near) {
  return block < near.begin ? near.begin - block : block - near.begin;
}

}  // namespace

bool within_reach(CodeRange block, CodeRange near) {
  CodeAddress low = std::min(block.begin, near.begin), high = std::max(block.end, near.end);
  return high - low <= static_cast<std::uint64_t>(reach);
}

Result<CodeAddress> map_near(CodeRange near, std::size_t size, std::size_t alignment,
                             CodeAddress below) {
  auto maps = read_maps();
  if (!maps) return pass(maps);
  std::vector<CodeAddress> places;
  CodeAddress free_from = lowest;
  for (std::size_t i = 0; i <= maps->size(); ++i) {
    const Mapping* above = i < maps->size() ? &(*maps)[i] : nullptr;
    CodeAddress free_to = above != nullptr ? above->range.begin : highest;
    if (above != nullptr && above->stack) free_to -= std::min(free_to, stack_room);
    if (below != 0) free_to = std::min(free_to, below);
    if (free_from + size <= free_to) {
      // Towards `near`, aligned, and not touching the neighbours: an overrun shall fault.
      CodeAddress low = (free_from + alignment - 1) & ~(alignment - 1);
      CodeAddress high = (free_to - size) & ~(alignment - 1);
      CodeAddress best = std::clamp(near.begin & ~(alignment - 1), low, std::max(low, high));
      if (low <= high && within_reach({best, best + size}, near)) places.push_back(best);
    }
    if (above != nullptr) {
      free_from = above->range.end + (above->heap ? heap_room : 0);
    }
  }
  std::ranges::sort(places, {}, [&](CodeAddress at) { return distance(at, near); });
  for (CodeAddress place : places) {
    void* wanted = reinterpret_cast<void*>(place);
    void* got = mmap(wanted, size, PROT_READ | PROT_EXEC,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (got == wanted) return place;
    // Kernels before 4.17 take the address as a hint.
    if (got != MAP_FAILED) munmap(got, size);
  }
  return refuse(Refusal::no_near_memory,
                "no %zu KiB are free within 2 GiB of %#zx: reserve earlier, or move large mappings",
                size / 1024, near.begin);
}

}  // namespace molt::arch
