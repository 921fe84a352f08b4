// entries.hpp - whether the running program's functions can be led elsewhere at their entries: asked at
// build time, by the very analysis that the process makes (arch/x86_64/entry.hpp).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "builder/placement.hpp"

namespace molt::builder {

class Entries {
 public:
  Entries(const Placement& placement, std::size_t units);
  // Why not, in words; `too_short`: all that is in the way is its length.
  struct Problem {
    std::string why;
    bool too_short = false;
  };
  [[nodiscard]] std::optional<Problem> problem(const PlacedFunction& function) const;

 private:
  struct Range {
    std::uint64_t begin, end;
  };
  const Placement& placement_;
  std::vector<Range> functions_;  // ascending
};

}  // namespace molt::builder
