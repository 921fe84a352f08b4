// placement_report BINARY [--debug FILE] OBJECT... - which functions of the objects are proven to be
// in the binary; for measuring on real programs, and for tests/builder/*.sh.
//
//     functions 3507 proven 3507 discarded 0 absent 0 differs 0 shared 0; units 62 of 98; 170 ms
#include "builder/placement.hpp"

#include <fmt/format.h>

#include <chrono>
#include <cstring>
#include <map>

using namespace molt::builder;

int main(int argc, char** argv) {
  std::string debug;
  std::vector<Unit> units;
  bool verbose = false;
  for (int i = 2; i < argc; ++i) {
    if (std::strcmp(argv[i], "--debug") == 0 && i + 1 < argc) {
      debug = argv[++i];
    } else if (std::strcmp(argv[i], "-v") == 0) {
      verbose = true;
    } else {
      Unit unit;
      unit.output = argv[i];
      unit.old_objects = {argv[i], ""};
      unit.new_objects = {argv[i], ""};
      units.push_back(unit);
    }
  }
  const auto begin = std::chrono::steady_clock::now();
  auto running = RunningFile::open(argv[1], debug);
  if (!running) return fmt::print(stderr, "{}\n", running.error().detail), 1;
  auto placement = Placement::compute(*running, units);
  if (!placement) return fmt::print(stderr, "{}\n", placement.error().detail), 1;
  const auto took = std::chrono::steady_clock::now() - begin;

  std::map<std::string, std::size_t> count;
  std::size_t shared = 0;
  std::size_t contained = 0;
  std::size_t all = 0;
  for (std::size_t i = 0; i < units.size(); ++i) {
    if (!placement->contains(i)) {
      if (verbose) fmt::print("not in it: {}\n", units[i].output);
      continue;
    }
    ++contained;
    for (const PlacedFunction& function : placement->functions(i)) {
      ++all;
      ++count[to_text(function.match)];
      shared += function.is_shared ? 1 : 0;
      if (verbose && function.match != PlacedFunction::Match::proven) {
        fmt::print("{} {}: {}\n", to_text(function.match), units[i].output, function.name);
      }
      if (verbose && function.is_shared)
        fmt::print("shared {}: {}\n", units[i].output, function.name);
    }
  }
  for (const Refusal& refusal : placement->refusals()) {
    fmt::print("{} {} {}: {}\n", refusal.kind, refusal.unit, refusal.where, refusal.text);
  }
  fmt::print(
      "functions {} proven {} discarded {} absent {} differs {} shared {}; units {} of {}; {} ms\n",
      all, count["proven"], count["discarded"], count["absent"], count["differs"], shared,
      contained, units.size(), std::chrono::duration_cast<std::chrono::milliseconds>(took).count());
  return placement->refusals().empty() ? 0 : 5;
}
