// unsafe.hpp - the changes that no patch can make in a running program, told by name.
//
// What a program has in memory was laid out and initialised by the old code: objects of the old
// layout, variables with their old values, tables of the old size. New functions would read them as
// what they are not. Each of these says what changed, where, from what to what, and what the author
// can do.
#pragma once

#include <string>
#include <vector>

#include "builder/compare.hpp"
#include "builder/debug_info.hpp"
#include "builder/edits.hpp"
#include "builder/patch.hpp"

#include <map>
#include <set>
#include <string>

namespace molt::builder {

struct UnitFacts {
  const Unit* unit;
  const Comparison* comparison;
  const DebugInfo* old_info;
  const DebugInfo* new_info;
};

// Appends to `refusals`; where one is may be left to the caller. `edits` tell whether the diff could do without what it does to the type.
void refuse_layouts(const UnitFacts& facts, const PatchOptions& options, const Edits& edits,
                    std::vector<Refusal>& refusals);
void refuse_data(const UnitFacts& facts, const PatchOptions& options,
                 std::vector<Refusal>& refusals);
// Variables that have gone, and others that came with their name elsewhere: a static that moved into a
// function, or out of one.
void refuse_moved_variables(const UnitFacts& facts, const PatchOptions& options,
                            std::vector<Refusal>& refusals, std::vector<std::string>& notes);
// Variables that the unit has no more, and those that it has anew, by their names in the source.
struct VariableChanges {
  std::set<std::string> lost;
  std::map<std::string, std::uint32_t> fresh;  // symbols of `now`
};
// A new unit has no comparison.
VariableChanges variable_changes(const View& now, const UnitFacts& facts);
void refuse_constructors(const UnitFacts& facts, const PatchOptions& options,
                         std::vector<Refusal>& refusals);
void refuse_functions(const UnitFacts& facts, std::vector<Refusal>& refusals);

// `main` is always on the stack: whether its change is only that others were inlined elsewhere than
// before. `edits` decides: nothing that its code comes from was edited.
bool is_ripple(const UnitFacts& facts, const std::string& function, const Edits& edits);
// A function of that name takes or gives something else than before; "" if not, else "A -> B".
std::string prototype_change(const UnitFacts& facts, const std::string& function);

}  // namespace molt::builder
