// static_locals.hpp - which static local of the new object is which of the old one.
//
// The compiler numbers them ("count.12") in the order in which it meets them, so their names say
// nothing. Debug information does: function, block, name, order.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "builder/compare.hpp"
#include "builder/debug_info.hpp"
#include "builder/unit.hpp"

namespace molt::builder {

struct StaticLocals {
  std::map<std::uint32_t, std::uint32_t> paired;  // symbol of the new object -> of the old
  std::set<std::uint32_t> unpaired;               // new ones for certain: their name is another's
  std::vector<std::string> notes;
};
// What cannot be told is refused, and left unpaired.
[[nodiscard]] StaticLocals pair_static_locals(const View& old_view, const View& new_view,
                                              const DebugInfo& old_info, const DebugInfo& new_info,
                                              const Unit& unit, std::vector<Refusal>& refusals);

}  // namespace molt::builder
