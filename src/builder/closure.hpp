// closure.hpp - what a patch must bring along: the functions that it replaces, and all that they need
// and the running program does not have.
//
// Everything else is bound to the program's own: functions and variables by Placement. Strings and
// constants are taken along by content; constant data that is the same is the program's own, so that
// its address is the one that the program compares with.
//
// Roles      build_patch() has one for each running file.
// Invariants B1, B2 of patch.hpp.
#pragma once

#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "builder/compare.hpp"
#include "builder/debug_info.hpp"
#include "builder/patch.hpp"
#include "builder/patch_writer.hpp"
#include "builder/placement.hpp"
#include "builder/unit.hpp"

namespace molt::builder {

// A unit that the diff changes, as the differ sees it.
struct DiffedUnit {
  std::size_t index = 0;  // in the units; of hand-written additions, behind them
  std::size_t scope = 0;  // the unit whose names it sees
  const Unit* unit = nullptr;
  const View* new_view = nullptr;
  const View* old_view = nullptr;          // null: a new unit
  const Comparison* comparison = nullptr;  // null: a new unit
  const DebugInfo* new_info = nullptr;     // null: hand-written additions
  std::set<std::uint32_t>
      replaced;  // sections whose function is replaced: entered by its old address
  // Sections whose function takes something else now: nobody is led to it, and who calls it is replaced.
  std::set<std::uint32_t> apart{};
  // Symbols of functions that had code of their own before, and have that of another now.
  std::set<std::uint32_t> joined{};
  // Symbols of functions that were another unit's before the diff: entered by their old address there.
  struct Origin {
    std::size_t unit = 0;
    std::uint32_t symbol = 0;  // of its old shadow
    bool is_same = false;      // the code, too: nothing to replace
  };
  std::map<std::uint32_t, Origin> moved{};
};

class Closure {
 public:
  // `placements`: of all running files, which export functions to each other. `runtime`: names that
  // libmolt.so exports, which is in every process that takes a patch.
  Closure(PatchWriter& writer, std::uint32_t target, const Placement& placement,
          std::span<const Placement* const> placements, std::span<const DiffedUnit> units,
          const std::set<std::string>& runtime, std::vector<Refusal>& refusals,
          PatchReport& report);

  // Takes the section along with all that it needs; its index in the writer.
  std::uint32_t include(const DiffedUnit& unit, std::uint32_t section);
  // The symbol of the new function in that section.
  std::uint32_t symbol_of(const DiffedUnit& unit, std::uint32_t section, std::uint32_t symbol);
  // All that was included is relocated, and unwind information added. Once, at the end.
  void finish();

 private:
  struct Key {
    std::size_t unit;
    std::uint32_t section;
    auto operator<=>(const Key&) const = default;
  };
  struct Bound {
    std::uint32_t symbol = 0;
    std::int64_t addend = 0;
    bool ok = false;
  };
  Bound bind(const DiffedUnit& unit, std::uint32_t section, const Relocation& relocation);
  Bound bind_undefined(const DiffedUnit& unit, const ObjectSymbol& symbol, std::uint32_t in);
  Bound bind_merged(const DiffedUnit& unit, const Referent& ref);
  Bound bind_place(const DiffedUnit& unit, const std::string& name, const Place& place,
                   std::uint32_t in);
  Bound own_copy(const DiffedUnit& unit, std::uint32_t section, std::uint64_t value);
  void relocate(const DiffedUnit& unit, std::uint32_t section);
  void add_frames();
  // `in`: the section that asks for it.
  void refuse(const DiffedUnit& unit, std::uint32_t in, const std::string& kind,
              const std::string& symbol, const std::string& text, const std::string& advice);
  std::uint32_t place_symbol(std::uint32_t written, std::uint64_t value);
  Bound place_in(std::uint32_t written, std::uint64_t value);

  PatchWriter& writer_;
  const std::uint32_t target_;
  const Placement& placement_;
  std::span<const Placement* const> placements_;
  std::span<const DiffedUnit> units_;
  const std::set<std::string>& runtime_;
  std::vector<Refusal>& refusals_;
  PatchReport& report_;
  std::map<Key, std::uint32_t> included_;
  std::vector<std::pair<const DiffedUnit*, std::uint32_t>> queue_;
  std::map<std::pair<std::uint32_t, std::uint64_t>, std::uint32_t> places_;  // symbols in sections
  std::map<std::uint32_t, std::uint32_t> section_symbols_;
  std::map<std::pair<std::string, std::uint64_t>, std::uint64_t> merged_;  // content, alignment
  std::uint32_t pool_ = 0;
  bool has_pool_ = false;
  std::set<std::string> refused_;
};

}  // namespace molt::builder
