// across.hpp - what the diff takes from one unit to another, and what that means for those whom it leaves alone.
//
// A running program's calls are bound: a name that the diff adds, takes away, or gives to another unit stays what it
// was for all code that is not replaced. A function that goes to another unit is led from its old entry to
// the new one. A variable that goes would begin anew, and is refused; so is a name that other units have bound to
// something else.
//
// Roles      build_patch() calls it once, with all units that changed compared and decided on.
// Checked by tests/patch/cases: function_across*, variable_across, static_across, weak_hook, library_instead
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "builder/entries.hpp"
#include "builder/patch.hpp"
#include "builder/studied.hpp"

namespace molt::builder {

struct AcrossRequest {
  std::span<const Unit> units;
  std::span<const Placement* const> placements;
  const PatchOptions& options;
  const std::vector<std::unique_ptr<Studied>>& studied;  // `moved` is filled in
  std::vector<Refusal>& refusals;
  std::vector<std::string>& notes;
  // Why a function of that unit cannot be entered by its old address.
  std::function<std::optional<Entries::Problem>(const Studied&, const std::string&)> entry_problem;
};

void find_moved(const AcrossRequest& request);

}  // namespace molt::builder
