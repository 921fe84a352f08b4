// harness.hpp - how molt-bench measures.
//
// Every goal is a ratio of two things measured in the same run, never an absolute time: absolute
// times differ by tens of percent between machines, and between two minutes on one machine. Three
// habits make such a ratio hold on a machine that does other things as well:
//
//   Rounds   Ours and the rival's are run in turn, a fraction of a millisecond each, a few hundred
//            times, and every other round in the opposite order. What disturbs for longer than a
//            round (another program, the clock frequency) disturbs both halves of it alike.
//   Medians  Of every round the ratio is taken; the figure is the median of these ratios. A round
//            in which one half was interrupted is an outlier, and outliers do not move a median.
//   Pinning  The measuring thread stays on one CPU; the first, untimed rounds warm caches and branch
//            predictors.
#pragma once

#include <sched.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace bench {

inline std::int64_t clock_ns(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
}
inline std::int64_t now_ns() { return clock_ns(CLOCK_MONOTONIC); }
// Time that the calling thread spent on a CPU: what other programs take does not count.
inline std::int64_t thread_cpu_ns() { return clock_ns(CLOCK_THREAD_CPUTIME_ID); }

inline double median(std::vector<double> values) {
  if (values.empty()) throw std::runtime_error("nothing was measured");
  std::sort(values.begin(), values.end());
  std::size_t n = values.size();
  return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

// The CPUs that this process may use.
inline std::vector<int> cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  std::vector<int> list;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) list.push_back(cpu);
  }
  return list;
}

// Keeps the calling thread on one CPU while it lives. The last is the one that interrupts bother
// least.
class Pinned {
 public:
  explicit Pinned(int cpu = cpus().back()) {
    sched_getaffinity(0, sizeof before_, &before_);
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0)
      throw std::runtime_error("cannot pin a thread");
  }
  ~Pinned() { sched_setaffinity(0, sizeof before_, &before_); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

 private:
  cpu_set_t before_;
};

struct Compared {
  double ours = 0;
  double rival = 0;
  double ratio = 0;       // median of the rounds' ratios, not ratio of the medians
  double difference = 0;  // median of the rounds' differences
};

// `ours` and `rival` are run once a round each and answer their figure (ns a call, calls a second).
template <class Ours, class Rival>
Compared compare(int rounds, Ours&& ours, Rival&& rival) {
  constexpr int warm_up = 5;
  std::vector<double> our_figures, rival_figures, ratios, differences;
  for (int round = -warm_up; round < rounds; ++round) {
    double a, b;
    if (round % 2 == 0) {
      a = ours();
      b = rival();
    } else {
      b = rival();
      a = ours();
    }
    if (round < 0) continue;
    our_figures.push_back(a);
    rival_figures.push_back(b);
    ratios.push_back(a / b);
    differences.push_back(a - b);
  }
  return {median(our_figures), median(rival_figures), median(ratios), median(differences)};
}

// A loop that does the measured thing `iterations` times.
template <class Context>
using Loop = void (*)(std::uint64_t iterations, Context* context);

// Time of one iteration.
template <class Context>
double time_loop(Loop<Context> loop, Context* context, std::uint64_t iterations) {
  std::int64_t from = now_ns();
  loop(iterations, context);
  return static_cast<double>(now_ns() - from) / static_cast<double>(iterations);
}

// So many iterations that the loop takes about half a millisecond: shorter than a time slice, so
// that most runs are not interrupted, and ten thousand times longer than reading the clock. The
// shortest of several tries counts: one that was interrupted would make the loop look slow.
template <class Context>
std::uint64_t iterations_for(Loop<Context> loop, Context* context) {
  constexpr double wanted_ns = 500'000;
  for (std::uint64_t iterations = 64;; iterations *= 2) {
    double each = time_loop(loop, context, iterations);
    for (int i = 0; i < 4; ++i) each = std::min(each, time_loop(loop, context, iterations));
    if (each * static_cast<double>(iterations) > wanted_ns / 4) {
      return std::max<std::uint64_t>(1, static_cast<std::uint64_t>(wanted_ns / each));
    }
  }
}

template <class Context>
Compared compare_loops(int rounds, Loop<Context> ours, Loop<Context> rival, Context* context) {
  std::uint64_t our_iterations = iterations_for(ours, context);
  std::uint64_t rival_iterations = iterations_for(rival, context);
  return compare(
      rounds, [&] { return time_loop(ours, context, our_iterations); },
      [&] { return time_loop(rival, context, rival_iterations); });
}

// Memory may have changed: nothing is kept in registers from one iteration to the next.
[[gnu::always_inline]] inline void barrier() { asm volatile("" ::: "memory"); }
template <class T>
[[gnu::always_inline]] inline void keep(const T& value) {
  asm volatile("" ::"r"(value));
}

}  // namespace bench
