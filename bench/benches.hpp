// benches.hpp - what can be measured, and what a measurement is given.
#pragma once

#include <string>
#include <vector>

#include "report.hpp"

namespace bench {

struct Options {
  bool quick = false;
  long cycles = 0;
  // Rounds of a comparison that takes about a millisecond each.
  int rounds() const { return quick ? 61 : 301; }
};

struct Bench {
  const char* name;
  const char* what;
  void (*run)(const Options& options, Report& report);
};

// Each file's list, in the order in which they are run.
std::vector<Bench> dispatch_benches();  // dispatch.cpp
std::vector<Bench> empty_benches();     // empty.cpp
std::vector<Bench> sharing_benches();   // sharing.cpp
std::vector<Bench> change_benches();    // change.cpp
std::vector<Bench> storm_benches();     // storm.cpp
std::vector<Bench> cycle_benches();     // cycles.cpp

// A part of a measurement that needs a process of its own; see storm.cpp. Answers the exit code.
int run_scenario(const std::string& name);

}  // namespace bench
