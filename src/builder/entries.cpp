#include "builder/entries.hpp"

#include <algorithm>

#include "arch/x86_64/entry.hpp"

namespace molt::builder {
namespace {
constexpr std::uint64_t most_padding = 16;
}

Entries::Entries(const Placement& placement, std::size_t units) : placement_(placement) {
  for (std::size_t u = 0; u < units; ++u) {
    for (const PlacedFunction& f : placement.functions(u)) {
      if (f.address != 0) functions_.push_back({f.address, f.address + f.size});
    }
  }
  std::ranges::sort(functions_, {}, &Range::begin);
}

std::optional<Entries::Problem> Entries::problem(const PlacedFunction& f) const {
  const std::uint64_t end = f.address + f.size;
  // What lies between it and its neighbours, of those that are known.
  std::uint64_t before = most_padding, after = most_padding;
  for (const Range& other : functions_) {
    if (other.begin == f.address) continue;
    if (other.begin >= end) after = std::min(after, other.begin - end);
    if (other.end <= f.address) before = std::min(before, f.address - other.end);
  }
  arch::EntryQuery query;
  query.address = f.address;
  query.size = f.size;
  query.before = before;
  query.after = after;
  auto bytes = placement_.image().bytes(f.address - before, before + f.size + after);
  if (!bytes) {
    query.before = query.after = 0;
    bytes = placement_.image().bytes(f.address, f.size);
  }
  if (!bytes) return Problem{"it has no bytes in the file", false};
  query.live = query.expected = *bytes;
  const auto entry = arch::analyse(query);
  if (entry) return std::nullopt;
  return Problem{entry.error().detail, arch::refusal_of(entry.error()) == arch::Refusal::too_short};
}

}  // namespace molt::builder
