// options.hpp - what every verb understands, before or behind its name.
#pragma once

#include <cmath>
#include <optional>
#include <string>
#include <vector>

namespace molt::cli {

// Which processes a verb is for.
struct Selection {
  std::vector<int> pids;
  std::vector<std::string> exes;
  std::vector<std::string> names;
  std::vector<int> trees;
  bool all = false;

  bool empty() const { return pids.empty() && is_pids_only(); }
  // One process and never several: its answer is not one of a list.
  bool is_single() const { return pids.size() == 1 && is_pids_only(); }
  bool is_pids_only() const { return exes.empty() && names.empty() && trees.empty() && !all; }
};

struct Options {
  Selection selection;
  std::optional<double> timeout_s;
  bool json = false;
  bool dry_run = false;
  bool verbose = false;
  bool quiet = false;

  // For requests; -1 is the process's own default. Rounded up: 0 would mean not to wait at all.
  int timeout_ms() const { return timeout_s ? static_cast<int>(std::ceil(*timeout_s * 1000)) : -1; }
};

}  // namespace molt::cli
