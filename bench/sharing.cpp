// What two threads can do that call the same hook all the time: hook.signals2, hook.shared_mutex,
// hook.shared_refcount, hook.threads2.
//
// Fair, because each rival is what it is in practice, and does the same work: four callbacks, the same
// functions, one after the other until one objects. All of them allow callbacks to be added and
// removed while threads call; each has its defaults, save that boost::signals2 gets a combiner which
// stops at the first objection, as the others do. The threads have a CPU and a request each and share
// nothing but the list of callbacks, which does not change meanwhile.
//
// Against rivals, throughput is calls per second of time on the clock, since theirs sleep while they
// wait. threads2 compares Molt with itself and takes CPU time: a thread that another program kept
// from running must not count as one that Molt kept from running.

#include <atomic>
#include <boost/signals2/signal.hpp>
#include <fstream>
#include <functional>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "benches.hpp"
#include "direct.hpp"
#include "harness.hpp"
#include "hooks.hpp"
#include "modules.hpp"

namespace bench {
namespace {

constexpr unsigned callbacks = 4;

[[gnu::noinline]] void molt_loop(std::uint64_t iterations, Request* request) {
  int sum = 0;
  for (std::uint64_t i = 0; i < iterations; ++i) {
    barrier();
    sum += chain4(request);
  }
  keep(sum);
}

// The answer of the first callback that objects; those behind it are not called.
struct FirstObjection {
  using result_type = int;
  template <class Iterator>
  int operator()(Iterator at, Iterator end) const {
    for (; at != end; ++at) {
      if (int answer = *at) return answer;
    }
    return 0;
  }
};
boost::signals2::signal<int(const Request*), FirstObjection> signal;

[[gnu::noinline]] void signals2_loop(std::uint64_t iterations, Request* request) {
  int sum = 0;
  for (std::uint64_t i = 0; i < iterations; ++i) {
    barrier();
    sum += signal(request);
  }
  keep(sum);
}

struct {
  std::shared_mutex mutex;
  std::vector<std::function<int(const Request*)>> list;
} locked;

[[gnu::noinline]] void shared_mutex_loop(std::uint64_t iterations, Request* request) {
  int sum = 0;
  for (std::uint64_t i = 0; i < iterations; ++i) {
    barrier();
    std::shared_lock lock(locked.mutex);
    for (const auto& callback : locked.list) {
      if (int answer = callback(request)) {
        sum += answer;
        break;
      }
    }
  }
  keep(sum);
}

// A reference is taken on a module before its callback is called, and dropped after: the kernel's
// try_module_get() without its per-CPU counters.
struct alignas(64) CountedModule {
  std::atomic<long> references{1};
};
struct Counted {
  Callback* callback;
  CountedModule* module;
};
CountedModule counted_modules[callbacks];
struct {
  Counted list[callbacks];
  unsigned count;
} counted;

[[gnu::noinline]] void refcount_loop(std::uint64_t iterations, Request* request) {
  int sum = 0;
  for (std::uint64_t i = 0; i < iterations; ++i) {
    barrier();
    for (unsigned k = 0; k < counted.count; ++k) {
      const Counted& entry = counted.list[k];
      entry.module->references.fetch_add(1, std::memory_order_acquire);
      int answer = entry.callback(request);
      entry.module->references.fetch_sub(1, std::memory_order_release);
      if (answer != 0) {
        sum += answer;
        break;
      }
    }
  }
  keep(sum);
}

void prepare() {
  static bool done = false;
  if (done) return;
  need_chains();
  for (unsigned k = 0; k < callbacks; ++k) {
    signal.connect(direct[k]);
    locked.list.emplace_back(direct[k]);
    counted.list[k] = {direct[k], &counted_modules[k]};
  }
  counted.count = callbacks;
  done = true;
}

// What the threads of one run did together.
struct Throughput {
  double calls_per_s = 0;      // of time on the clock
  double calls_per_cpu_s = 0;  // of time on a CPU
  std::int64_t disturbed_ns = 0;
};

// How long the calling thread stood by, ready to run, while another ran on its CPU.
std::int64_t stood_by_ns() {
  std::ifstream file("/proc/thread-self/schedstat");
  std::int64_t ran = 0, stood_by = 0;
  file >> ran >> stood_by;
  return stood_by;
}

Throughput run_threads(const std::vector<int>& on_cpus, Loop<Request> loop, std::int64_t ns) {
  constexpr std::uint64_t chunk = 500;
  std::vector<Throughput> each(on_cpus.size());
  std::atomic<std::size_t> ready{0};
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < on_cpus.size(); ++i) {
    threads.emplace_back([&, i] {
      Pinned pinned(on_cpus[i]);
      Request request;
      loop(chunk, &request);
      ready.fetch_add(1, std::memory_order_acq_rel);
      while (ready.load(std::memory_order_acquire) < on_cpus.size()) sched_yield();
      std::int64_t stood_by = stood_by_ns();
      std::int64_t from = now_ns(), cpu_from = thread_cpu_ns(), now = from;
      std::uint64_t calls = 0;
      do {
        loop(chunk, &request);
        calls += chunk;
        now = now_ns();
      } while (now - from < ns);
      auto n = static_cast<double>(calls) * 1e9;
      each[i] = {n / static_cast<double>(now - from),
                 n / static_cast<double>(thread_cpu_ns() - cpu_from), stood_by_ns() - stood_by};
    });
  }
  Throughput sum;
  for (std::size_t i = 0; i < threads.size(); ++i) {
    threads[i].join();
    sum.calls_per_s += each[i].calls_per_s;
    sum.calls_per_cpu_s += each[i].calls_per_cpu_s;
    sum.disturbed_ns += each[i].disturbed_ns;
  }
  return sum;
}

std::vector<int> two_cpus() {
  std::vector<int> all = cpus();
  if (all.size() < 2) throw std::runtime_error("it takes two CPUs");
  return {all[all.size() - 2], all.back()};
}

constexpr std::int64_t run_ns = 3'000'000;
int rounds_of(const Options& options) { return options.quick ? 15 : 61; }

// As compare(), for threads that shall get into each other's way. When another program takes one of
// the CPUs, the two threads no longer run at the same time, and there is nothing left of what is
// measured. So there are up to ten times as many rounds as wanted, until enough were undisturbed;
// those that were disturbed least count.
Compared compare_undisturbed(int rounds, const std::vector<int>& on, Loop<Request> rival) {
  struct Round {
    std::int64_t disturbed_ns;
    double ours, rival;
  };
  std::vector<Round> all;
  int clean = 0;
  for (int i = 0; i < rounds * 10 && clean < rounds; ++i) {
    Throughput a, b;
    if (i % 2 == 0) {
      a = run_threads(on, molt_loop, run_ns);
      b = run_threads(on, rival, run_ns);
    } else {
      b = run_threads(on, rival, run_ns);
      a = run_threads(on, molt_loop, run_ns);
    }
    all.push_back({a.disturbed_ns + b.disturbed_ns, a.calls_per_s, b.calls_per_s});
    if (all.back().disturbed_ns < run_ns / 50) ++clean;
  }
  std::sort(all.begin(), all.end(),
            [](const Round& a, const Round& b) { return a.disturbed_ns < b.disturbed_ns; });
  all.resize(static_cast<std::size_t>(std::max(clean, std::min(rounds, 5))));
  std::vector<double> ours, theirs, ratios;
  for (const Round& round : all) {
    ours.push_back(round.ours);
    theirs.push_back(round.rival);
    ratios.push_back(round.ours / round.rival);
  }
  return {median(ours), median(theirs), median(ratios), 0};
}

void against(const char* name, Loop<Request> rival, const char* rival_name, double goal,
             const Options& options, Report& report) {
  prepare();
  Compared c = compare_undisturbed(rounds_of(options), two_cpus(), rival);
  report.add({name, c.ours / 1e6, "Mcalls/s", rival_name, c.rival / 1e6, c.ratio,
              Goal::ratio_at_least(goal)});
}

void signals2(const Options& o, Report& r) {
  against("hook.signals2", signals2_loop, "boost::signals2", 120, o, r);
}
void shared_mutex(const Options& o, Report& r) {
  against("hook.shared_mutex", shared_mutex_loop, "vector<function>, shared_mutex", 13, o, r);
}
void shared_refcount(const Options& o, Report& r) {
  against("hook.shared_refcount", refcount_loop, "array, refcount per module", 50, o, r);
}

void threads2(const Options& options, Report& report) {
  prepare();
  auto on = two_cpus();
  // One thread is measured on either CPU in turn: they need not be equally fast.
  Compared c = compare(
      rounds_of(options), [&] { return run_threads(on, molt_loop, run_ns).calls_per_cpu_s; },
      [&] {
        return (run_threads({on[0]}, molt_loop, run_ns).calls_per_cpu_s +
                run_threads({on[1]}, molt_loop, run_ns).calls_per_cpu_s) /
               2;
      });
  report.add({"hook.threads2", c.ours / 1e6, "Mcalls/s", "one thread", c.rival / 1e6, c.ratio,
              Goal::ratio_at_least(1.95)});
}

}  // namespace

std::vector<Bench> sharing_benches() {
  return {
      {"hook.signals2", "two threads, chain of 4, against boost::signals2", signals2},
      {"hook.shared_mutex", "the same, against a list under std::shared_mutex", shared_mutex},
      {"hook.shared_refcount", "the same, against shared reference counts", shared_refcount},
      {"hook.threads2", "two threads against one", threads2},
  };
}

}  // namespace bench
