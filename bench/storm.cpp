// module.load_storm: 400 threads load the same module at once.
//
// The module is a shared object of about 1.8 MB with thousands of functions and relocations, generated
// when the benchmarks are built: loading it takes real work. Each scenario runs in a process of its
// own, with 400 threads parked on a flag, so that all start from the same memory:
//
//   one     one load; the threads are released when it is over and only end
//   storm   all 400 are released and call molt_load(); the time runs from the release to the return of
//           the last, so it contains the waking of 400 threads
//   dlopen  as storm, with dlopen() of the file
//   copies  as dlopen, each thread with a copy of its own: what 400 loads cost that nobody merges
//
// A thread of the storm gets 0, or EEXIST if it came only after the module was live. That init ran
// exactly once is told by the module, through a counter whose address is a parameter. Memory is read
// when all threads have ended.

#include <dlfcn.h>
#include <linux/futex.h>
#include <molt/molt.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <filesystem>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "benches.hpp"
#include "harness.hpp"
#include "modules.hpp"
#include "process.hpp"

namespace bench {
namespace {

constexpr int storm_threads = 400;
constexpr std::size_t stack_bytes = 256 * 1024;

struct Outcome {
  double ms = 0;
  std::int64_t rss_kib = 0;  // more than before
  std::int64_t mappings = 0;
  int inits = 0;
  int joined = 0;  // answered 0
  int late = 0;    // answered EEXIST
};

// A flag that threads wait for. Not std::atomic::wait(): that yields several times before it sleeps,
// and 400 threads that yield keep a load from running that others wait for.
class Stage {
 public:
  void wait_while(int value) const {
    while (value_.load(std::memory_order_acquire) == value) {
      syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
    }
  }
  void set(int value) {
    value_.store(value, std::memory_order_release);
    syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
  }

 private:
  std::atomic<int> value_{0};
};

// Threads that wait for a flag, and then do `work(i)`.
class Crowd {
 public:
  explicit Crowd(std::function<void(int)> work) : work_(std::move(work)) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, stack_bytes);
    members_.resize(storm_threads);
    for (int i = 0; i < storm_threads; ++i) {
      members_[static_cast<std::size_t>(i)] = {this, i, {}, 0};
      Member& member = members_[static_cast<std::size_t>(i)];
      if (pthread_create(&member.thread, &attributes, run, &member) != 0) {
        throw std::runtime_error("cannot create 400 threads");
      }
    }
    pthread_attr_destroy(&attributes);
    while (waiting_.load(std::memory_order_acquire) < storm_threads) usleep(1000);
    usleep(20'000);  // and asleep
  }
  // Answers when the last of them was done. They end only after that: ending takes time, too, and is
  // not what is measured.
  std::int64_t release() {
    stage_.set(1);
    while (done_.load(std::memory_order_acquire) < storm_threads) usleep(1000);
    stage_.set(2);
    std::int64_t last = 0;
    for (Member& member : members_) {
      pthread_join(member.thread, nullptr);
      last = std::max(last, member.done_ns);
    }
    return last;
  }

 private:
  struct Member {
    Crowd* crowd;
    int number;
    pthread_t thread;
    std::int64_t done_ns;
  };
  static void* run(void* argument) {
    auto* member = static_cast<Member*>(argument);
    // As threads of a real program, they have allocated before: what the C library keeps for each
    // is there in every scenario.
    void* volatile first = malloc(1000);
    free(first);
    Crowd& crowd = *member->crowd;
    crowd.waiting_.fetch_add(1, std::memory_order_release);
    crowd.stage_.wait_while(0);
    crowd.work_(member->number);
    member->done_ns = now_ns();
    crowd.done_.fetch_add(1, std::memory_order_release);
    crowd.stage_.wait_while(1);
    return nullptr;
  }
  std::function<void(int)> work_;
  std::vector<Member> members_;
  std::atomic<int> waiting_{0}, done_{0};
  Stage stage_;  // 1: work, 2: end
};

Outcome grown(const Holdings& before, double ms) {
  Holdings after = holdings();
  Outcome outcome;
  outcome.ms = ms;
  outcome.rss_kib = after.rss_kib - before.rss_kib;
  outcome.mappings = after.mappings - before.mappings;
  return outcome;
}
double ms_since(std::int64_t from, std::int64_t to) { return static_cast<double>(to - from) / 1e6; }

std::atomic<int> inits{0};
std::string arguments() {
  return "counter=" + std::to_string(reinterpret_cast<std::uintptr_t>(&inits));
}

Outcome one() {
  std::string path = module_path("bench_big"), args = arguments();
  Holdings before = holdings();
  Crowd crowd([](int) {});
  std::int64_t from = now_ns();
  int error = molt_load(path.c_str(), args.c_str(), 0, -1);
  std::int64_t to = now_ns();
  crowd.release();
  if (error != 0) throw std::runtime_error(molt_last_error());
  Outcome outcome = grown(before, ms_since(from, to));
  outcome.inits = inits.load();
  return outcome;
}

Outcome storm() {
  std::string path = module_path("bench_big"), args = arguments();
  std::atomic<int> joined{0}, late{0}, failed{0};
  Holdings before = holdings();
  Crowd crowd([&](int) {
    int error = molt_load(path.c_str(), args.c_str(), 0, -1);
    (error == 0 ? joined : error == -EEXIST ? late : failed).fetch_add(1);
  });
  std::int64_t from = now_ns();
  std::int64_t to = crowd.release();
  if (failed != 0) throw std::runtime_error("a load failed");
  Outcome outcome = grown(before, ms_since(from, to));
  outcome.inits = inits.load();
  outcome.joined = joined.load();
  outcome.late = late.load();
  return outcome;
}

Outcome nothing() {
  Holdings before = holdings();
  Crowd crowd([](int) {});
  std::int64_t from = now_ns();
  std::int64_t to = crowd.release();
  return grown(before, ms_since(from, to));
}

Outcome dlopen_all(const std::function<std::string(int)>& path) {
  std::vector<std::string> paths;
  for (int i = 0; i < storm_threads; ++i) paths.push_back(path(i));
  std::atomic<int> failed{0};
  Holdings before = holdings();
  Crowd crowd([&](int i) {
    if (dlopen(paths[static_cast<std::size_t>(i)].c_str(), RTLD_NOW | RTLD_LOCAL) == nullptr)
      ++failed;
  });
  std::int64_t from = now_ns();
  std::int64_t to = crowd.release();
  if (failed != 0) throw std::runtime_error(dlerror());
  return grown(before, ms_since(from, to));
}

Outcome dlopen_same() {
  return dlopen_all([](int) { return module_path("bench_big"); });
}

Outcome dlopen_copies() {
  namespace fs = std::filesystem;
  std::string pattern = fs::temp_directory_path() / "molt-bench-XXXXXX";
  if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary folder");
  fs::path folder = pattern;
  Outcome outcome;
  try {
    outcome = dlopen_all([&](int i) {
      fs::path copy = folder / (std::to_string(i) + ".so");
      fs::copy_file(module_path("bench_big"), copy);
      return copy.string();
    });
  } catch (...) {
    fs::remove_all(folder);
    throw;
  }
  fs::remove_all(folder);
  return outcome;
}

struct Scenario {
  const char* name;
  Outcome (*run)();
};
constexpr Scenario scenarios[] = {{"one", one},
                                  {"nothing", nothing},
                                  {"storm", storm},
                                  {"dlopen", dlopen_same},
                                  {"copies", dlopen_copies}};

Outcome run(const char* name) {
  std::istringstream text(run_in_new_process(name));
  Outcome o;
  text >> o.ms >> o.rss_kib >> o.mappings >> o.inits >> o.joined >> o.late;
  if (!text) throw std::runtime_error(std::string("no figures from scenario ") + name);
  return o;
}

void load_storm(const Options& options, Report& report) {
  std::vector<double> one_ms, storm_ms, ms_ratio, one_kib, storm_kib, kib_ratio, maps_ratio;
  std::vector<double> dlopen_ms, dlopen_ratio;
  double one_maps = 0, storm_maps = 0, extra_inits = 0;
  for (int round = 0; round < (options.quick ? 5 : 15); ++round) {
    report.progress("module.load_storm: round " + std::to_string(round + 1));
    Outcome single = run("one"), all = run("storm"), plain = run("dlopen");
    if (all.joined + all.late != storm_threads || all.joined < 1) {
      throw std::runtime_error("a thread of the storm has no answer");
    }
    one_ms.push_back(single.ms);
    storm_ms.push_back(all.ms);
    ms_ratio.push_back(all.ms / single.ms);
    one_kib.push_back(static_cast<double>(single.rss_kib));
    storm_kib.push_back(static_cast<double>(all.rss_kib));
    kib_ratio.push_back(static_cast<double>(all.rss_kib) / static_cast<double>(single.rss_kib));
    maps_ratio.push_back(static_cast<double>(all.mappings) / static_cast<double>(single.mappings));
    one_maps = static_cast<double>(single.mappings);
    storm_maps = static_cast<double>(all.mappings);
    dlopen_ms.push_back(plain.ms);
    dlopen_ratio.push_back(all.ms / plain.ms);
    extra_inits = std::max(extra_inits, static_cast<double>(std::abs(all.inits - 1)));
  }
  report.add({"module.load_storm", median(storm_ms), "ms", "one load", median(one_ms),
              median(ms_ratio), Goal::ratio_at_most(3)});
  report.add({"module.load_storm.memory", median(storm_kib), "KiB", "one load", median(one_kib),
              median(kib_ratio), Goal::ratio_at_most(1.05)});
  report.add({"module.load_storm.mappings", storm_maps, "", "one load", one_maps,
              median(maps_ratio), Goal::ratio_at_most(1.05)});
  report.add({"module.load_storm.extra_inits", extra_inits, "", "", 0, 0, Goal::value_is_zero()});
  report.add({"module.load_storm.dlopen", median(storm_ms), "ms", "400 dlopen() of the same file",
              median(dlopen_ms), median(dlopen_ratio), Goal::info()});
  report.progress("module.load_storm: 400 copies");
  Outcome copies = run("copies");
  report.add({"module.load_storm.copies", median(storm_ms), "ms", "400 dlopen() of copies",
              copies.ms, median(storm_ms) / copies.ms, Goal::info()});
  report.add({"module.load_storm.copies_memory", median(storm_kib), "KiB", "400 dlopen() of copies",
              static_cast<double>(copies.rss_kib),
              median(storm_kib) / static_cast<double>(copies.rss_kib), Goal::info()});
}

}  // namespace

int run_storm(const std::string& name) {
  for (const Scenario& scenario : scenarios) {
    if (name != scenario.name) continue;
    Outcome o = scenario.run();
    std::printf("%.6f %lld %lld %d %d %d\n", o.ms, static_cast<long long>(o.rss_kib),
                static_cast<long long>(o.mappings), o.inits, o.joined, o.late);
    return 0;
  }
  return -1;
}

std::vector<Bench> storm_benches() {
  return {
      {"module.load_storm", "400 threads load one module at once, against one load", load_storm}};
}

}  // namespace bench
