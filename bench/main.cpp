// The command line of molt-bench, which measures Molt beside its rivals. `./run bench` builds and
// calls it; docs/benchmarks.md says what the figures mean.

#include <fnmatch.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <set>

#include "benches.hpp"
#include "dispatch_loops.hpp"

namespace {

using bench::Bench;

std::vector<Bench> all_benches() {
  std::vector<Bench> all;
  for (auto part : {bench::dispatch_benches, bench::empty_benches, bench::sharing_benches,
                    bench::change_benches, bench::audit_benches, bench::storm_benches,
                    bench::cycle_benches, bench::residency_benches, bench::redirect_benches,
                    bench::livepatch_benches, bench::interpose_benches, bench::program_benches}) {
    for (const Bench& one : part()) all.push_back(one);
  }
  return all;
}

// A name in full means that one; otherwise a prefix or a glob.
std::vector<Bench> select(const std::vector<Bench>& all, const std::vector<std::string>& patterns,
                          std::string& unknown) {
  if (patterns.empty()) return all;
  std::set<std::string> chosen;
  for (const std::string& pattern : patterns) {
    std::set<std::string> found;
    for (const Bench& one : all) {
      if (pattern == one.name) found = {one.name};
    }
    for (const Bench& one : all) {
      std::string name = one.name;
      if (!found.contains(pattern) &&
          (name.starts_with(pattern) || fnmatch(pattern.c_str(), one.name, 0) == 0)) {
        found.insert(name);
      }
    }
    if (found.empty()) unknown = pattern;
    chosen.merge(found);
  }
  std::vector<Bench> selected;
  for (const Bench& one : all) {
    if (chosen.contains(one.name)) selected.push_back(one);
  }
  return selected;
}

}  // namespace

int bench::run_program(int argc, char** argv, const DispatchLoops& in_program) {
  far_loops_of_program = &in_program;
  bench::Options options;
  std::vector<std::string> patterns;
  std::string json, scenario;
  bool list = false;

  CLI::App app{"Measures Molt beside its rivals.\nEach goal is a ratio taken in this run.",
               "molt-bench"};
  app.add_option("name", patterns, "what to measure: a name, a prefix or a glob; default: all");
  app.add_flag("--list", list, "show the names and end");
  app.add_flag("--quick", options.quick, "fewer rounds, fewer cycles");
  app.add_option("--cycles", options.cycles, "loads and unloads of module.cycles (default 100000)")
      ->check(CLI::PositiveNumber);
  app.add_option("--json", json, "write the figures to this file as well")->type_name("FILE");
  app.add_option("--scenario", scenario)->group("");  // for molt-bench itself
  CLI11_PARSE(app, argc, argv);
  if (options.cycles == 0) options.cycles = options.quick ? 5'000 : 100'000;

  if (!scenario.empty()) {
    try {
      int result = bench::run_figure(scenario);
      return result >= 0 ? result : bench::run_storm(scenario) == 0 ? 0 : 1;
    } catch (const std::exception& e) {
      std::printf("%s\n", e.what());
      return 1;
    }
  }

  std::vector<Bench> all = all_benches();
  if (list) {
    for (const Bench& one : all) std::printf("%-28s %s\n", one.name, one.what);
    return 0;
  }
  std::string unknown;
  std::vector<Bench> selected = select(all, patterns, unknown);
  if (!unknown.empty()) {
    std::fprintf(stderr, "molt-bench: nothing is called '%s'; --list shows the names\n",
                 unknown.c_str());
    return 1;
  }

  bench::Report report;
  for (const Bench& one : selected) {
    report.progress(std::string(one.name) + " ...");
    try {
      one.run(options, report);
    } catch (const std::exception& e) {
      report.fail(one.name, e.what());
    }
  }
  report.summary();
  if (!json.empty() && !report.write_json(json)) {
    std::fprintf(stderr, "molt-bench: cannot write %s\n", json.c_str());
    return 1;
  }
  return report.failed() ? 1 : 0;
}
