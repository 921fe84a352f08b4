// harness.hpp - how ratios are measured that hold on a noisy machine.
//
// Ours and the rival's loop run in turn, A B A B ..., each pair close together in time; the ratio is
// taken pair by pair, and the median of the ratios is quoted. A drift of the machine's speed moves
// both halves of a pair. Threads are pinned, and the first pairs are not counted.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace bench {

struct Record {
  std::string name;
  double value;
  std::string unit;
  std::string rival;  // empty: none
  double rival_value = 0;
  double ratio = 0;  // what the goal is about: value / rival_value, or as `what` says
  std::string goal;  // "<= 1.05", ">= 120", "== 0", "info"
  bool holds = true;
};

struct Options {
  bool quick = false;
  int cycles = 100'000;
};
const Options& options();

// Measurements, in the order of their registration; the name is the prefix of its records' names.
struct Bench {
  const char* name;
  void (*run)();
};
void add(Bench bench);
struct Registered {
  Registered(const char* name, void (*run)()) { add({name, run}); }
};

// `holds` is computed from `ratio` and `goal`.
void report(Record record);
// A measurement that could not be made; the program will exit with 1.
void failed(const std::string& name, const std::string& why);
// A line of progress on stderr.
void progress(const std::string& text);

// Nanoseconds on the monotonic clock.
std::int64_t now_ns();
void pin(int cpu);
double median(std::vector<double> values);

struct Pair {
  double ours, rival;  // medians, ns per iteration
  double ratio;        // median of ours/rival
};
// `ours(n)` and `rival(n)` do n iterations; each run takes about `run_ms`.
Pair paired(const std::function<void(std::uint64_t)>& ours,
            const std::function<void(std::uint64_t)>& rival, int pairs = 31, int run_ms = 10);

// Iterations per second of `body` on `threads` pinned threads for `ms` milliseconds. `body(n)` is
// called again and again with the same n.
double throughput(int threads, int ms, const std::function<void(std::uint64_t)>& body);

// As paired(), for throughput: the ratio is ours/rival.
Pair paired_throughput(int threads_ours, const std::function<void(std::uint64_t)>& ours,
                       int threads_rival, const std::function<void(std::uint64_t)>& rival,
                       int pairs = 9, int run_ms = 60);

// The path of a module built for the benches.
std::string module_path(const std::string& name);
// molt_load / molt_unload that end the program's measurement with a message when they fail.
void must_load(const std::string& name);
void must_unload(const std::string& name);

// Keeps a value, and memory, from being optimised away.
template <class T>
inline void keep(T const& value) {
  asm volatile("" : : "r"(value));
}
inline void clobber() { asm volatile("" : : : "memory"); }

}  // namespace bench
