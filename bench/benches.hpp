// benches.hpp - what can be measured, and what a measurement is given.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "harness.hpp"
#include "report.hpp"

namespace bench {

struct Options {
  bool quick = false;
  long cycles = 0;
};

// A comparison of two loops that is made several times, each time in a process of its own. Where the
// kernel puts program and modules in memory is random (ASLR), and decides which of their branches
// meet in the processor's tables: that moves a figure by a fifth, in one process in ten. The median
// over processes is not moved.
struct Figure {
  const char* name;
  Compared (*measure)(int rounds);
};
// The medians of all processes.
Compared measure_in_processes(const std::string& figure, const Options& options);

struct Bench {
  const char* name;
  const char* what;
  std::function<void(const Options& options, Report& report)> run;
};

std::vector<Figure> dispatch_figures();   // dispatch.cpp
std::vector<Figure> empty_figures();      // empty.cpp
std::vector<Figure> audit_figures();      // audit.cpp
std::vector<Figure> redirect_figures();   // redirect.cpp
std::vector<Figure> livepatch_figures();  // livepatch.cpp
std::vector<Figure> interpose_figures();  // interpose.cpp

// Each file's list, in the order in which they are run.
std::vector<Bench> dispatch_benches();   // dispatch.cpp
std::vector<Bench> empty_benches();      // empty.cpp
std::vector<Bench> sharing_benches();    // sharing.cpp
std::vector<Bench> change_benches();     // change.cpp
std::vector<Bench> storm_benches();      // storm.cpp
std::vector<Bench> cycle_benches();      // cycles.cpp
std::vector<Bench> audit_benches();      // audit.cpp
std::vector<Bench> residency_benches();  // residency.cpp
std::vector<Bench> redirect_benches();   // redirect.cpp
std::vector<Bench> livepatch_benches();  // livepatch.cpp
std::vector<Bench> interpose_benches();  // interpose.cpp
std::vector<Bench> program_benches();    // programs.cpp

// The parts of measurements that need a process of their own, which was started with
// `--scenario NAME`; they print what they measured. The exit code, or -1: no such scenario.
int run_figure(const std::string& name_and_rounds);  // figures.cpp
int run_storm(const std::string& name);              // storm.cpp

}  // namespace bench
