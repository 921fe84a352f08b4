// studied.hpp - one unit that the diff changes, as build_patch() and its parts see it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>

#include "builder/closure.hpp"
#include "builder/compare.hpp"
#include "builder/debug_info.hpp"
#include "builder/object.hpp"
#include "builder/unsafe.hpp"

namespace molt::builder {

// One unit that the diff changes, with all that is known of it.
struct Studied {
  std::size_t index = 0;
  const Unit* unit = nullptr;
  std::optional<Object> old_object, new_object;
  std::unique_ptr<View> old_view, new_view;
  DebugInfo old_info, new_info;
  std::unique_ptr<Comparison> comparison;
  std::set<std::uint32_t> replaced;
  std::set<std::uint32_t> looked_at, apart;  // sections; apart: of functions that nobody is led to
  std::set<std::uint32_t> kept;              // sections that changed, and stay as they were
  std::set<std::uint32_t> joined;            // DiffedUnit::joined
  std::map<std::uint32_t, DiffedUnit::Origin> moved;

  UnitFacts facts() const { return {unit, comparison.get(), &old_info, &new_info}; }
};

// Whether each running file that has the user has the other: what one file calls in another goes by the loader.
inline bool is_wherever(std::span<const Placement* const> placements, const Studied& s,
                        const Studied& user) {
  const auto is_in = [](const Placement& placement, const Studied& one) {
    return one.unit->is_new() || placement.contains(one.index);
  };
  return std::ranges::all_of(placements,
                             [&](const Placement* p) { return !is_in(*p, user) || is_in(*p, s); });
}

}  // namespace molt::builder
