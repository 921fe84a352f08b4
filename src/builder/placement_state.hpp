// placement_state.hpp - what placement.cpp proves and placement_query.cpp answers from. Internal.
#pragma once

#include "builder/object.hpp"
#include "builder/placement.hpp"
#include "builder/relax.hpp"
#include "builder/running_file.hpp"

#include <unordered_map>
#include <unordered_set>

namespace molt::builder {

struct PlacedSection {
  // A link-time address, or for thread-local sections an offset in the TLS block.
  std::optional<std::uint64_t> base;
  bool is_proven = false;     // its bytes are there
  bool is_discarded = false;  // another unit's copy is
  std::vector<Reference> references;
  std::optional<Difference> difference;   // why not proven, at the best candidate
  std::vector<std::uint64_t> candidates;  // more than one that fits
};

struct UnitState {
  const Unit* unit = nullptr;
  std::optional<Object> plain;
  std::optional<Object> shadow;
  std::vector<PlacedSection> sections;
  // Functions that were proven one by one, since their section as a whole was not; by symbol.
  std::unordered_map<std::uint32_t, std::uint64_t> lone_functions;
  std::vector<PlacedFunction> functions;
  std::unordered_map<std::string_view, std::size_t> function_by_name;
  std::unordered_map<std::string_view, std::vector<std::uint32_t>> plain_by_name;
  std::unordered_map<std::string_view, std::vector<std::uint32_t>> shadow_by_name;
  bool is_contained = false;

  const ObjectSymbol& symbol(std::uint32_t index) const { return plain->symbols()[index]; }
};

struct Placement::State {
  const RunningFile* running = nullptr;
  const RunningFile::State* file = nullptr;
  std::vector<UnitState> units;
  std::vector<Refusal> refusals;
  // Global names to addresses, as proven code refers to them.
  std::unordered_map<std::string_view, std::uint64_t> globals;
  std::unordered_map<std::string_view, std::uint64_t> tls_globals;
  std::unordered_map<std::string_view, std::uint64_t> plt_entries;
  std::unordered_set<std::string_view> nulls;  // weak, and nothing defines them

  Place of_symbol(const UnitState& unit, std::uint32_t plain_index) const;
  Place of_name(std::string_view name) const;
};

}  // namespace molt::builder
