// Loading: 400 threads that want one module at once, and very many loads and unloads.

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>
#include <molt/host.hpp>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "harness.hpp"

namespace {

// --- what the process holds ---------------------------------------------------------------------

struct Footprint {
  long mappings, fds, threads, rss_kib;
};

long count_entries(const char* folder);

Footprint footprint() {
  Footprint f{};
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) ++f.mappings;
  f.fds = count_entries("/proc/self/fd");
  f.threads = count_entries("/proc/self/task");
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    std::sscanf(line.c_str(), "VmRSS: %ld", &f.rss_kib);
  }
  return f;
}

}  // namespace

#include <dirent.h>

namespace {

long count_entries(const char* folder) {
  DIR* dir = opendir(folder);
  if (dir == nullptr) return -1;
  long n = -2;  // . and ..
  while (readdir(dir) != nullptr) ++n;
  closedir(dir);
  return n;
}

// --- the storm ------------------------------------------------------------------------------------

constexpr int storm_threads = 400;

// Microseconds from the word go until all threads have had their answer.
double storm(const std::function<void()>& act) {
  pthread_barrier_t ready;
  pthread_barrier_init(&ready, nullptr, storm_threads + 1);
  std::atomic<std::int64_t> last{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < storm_threads; ++i) {
    threads.emplace_back([&] {
      pthread_barrier_wait(&ready);
      act();
      std::int64_t now = bench::now_ns();
      std::int64_t seen = last.load(std::memory_order_relaxed);
      while (seen < now && !last.compare_exchange_weak(seen, now, std::memory_order_relaxed)) {
      }
    });
  }
  pthread_barrier_wait(&ready);
  std::int64_t from = bench::now_ns();
  for (std::thread& thread : threads) thread.join();
  pthread_barrier_destroy(&ready);
  return static_cast<double>(last.load(std::memory_order_relaxed) - from) / 1000;
}

double once(const std::function<void()>& act) {
  std::int64_t from = bench::now_ns();
  act();
  return static_cast<double>(bench::now_ns() - from) / 1000;
}

bench::Registered load_storm("module.load_storm", [] {
  const std::string path = bench::module_path("bench_big");
  struct stat info;
  if (stat(path.c_str(), &info) != 0) throw std::runtime_error(path + ": not built");
  const int rounds = bench::options().quick ? 3 : 15;

  std::atomic<int> ok{0}, already{0}, other{0};
  auto load = [&] {
    switch (molt_load(path.c_str(), nullptr, 0, -1)) {
      case 0:
        ok.fetch_add(1, std::memory_order_relaxed);
        break;
      case -EEXIST:  // came when it was live
        already.fetch_add(1, std::memory_order_relaxed);
        break;
      default:
        other.fetch_add(1, std::memory_order_relaxed);
    }
  };
  // The same 400 threads doing nothing, in each round: what remains is the loading.
  std::vector<double> single, many, ratio, memory;
  for (int i = -1; i < rounds; ++i) {
    long before = footprint().rss_kib;
    double one = once(load);
    long one_kib = footprint().rss_kib - before;
    bench::must_unload("bench_big");
    long idle_before = footprint().rss_kib;
    storm([] {});
    long stacks_kib = footprint().rss_kib - idle_before;
    before = footprint().rss_kib;
    double all = storm(load);
    long all_kib = footprint().rss_kib - before - (i < 0 ? stacks_kib : 0);
    bench::must_unload("bench_big");
    if (i < 0) continue;
    single.push_back(one);
    many.push_back(all);
    ratio.push_back(all / one);
    memory.push_back(static_cast<double>(all_kib) / static_cast<double>(std::max(1L, one_kib)));
  }
  if (other.load(std::memory_order_relaxed) != 0) throw std::runtime_error(molt_last_error());
  bench::report({"module.load_storm.time", bench::median(many), "us", "one load",
                 bench::median(single), bench::median(ratio), "<= 3"});
  bench::report({"module.load_storm.memory", bench::median(memory), "x", "one load", 1,
                 bench::median(memory), "<= 1.05"});

  // Each storm loads it once: everybody else shared that load, or came when it was live.
  int storms = rounds + 1;
  double inits = static_cast<double>(ok.load(std::memory_order_relaxed) +
                                     already.load(std::memory_order_relaxed)) -
                 storms * (storm_threads + 1);
  bench::report({"module.load_storm.unanswered", -inits, "threads", "", 0, -inits, "== 0"});

  std::vector<double> plain;
  for (int i = 0; i < rounds; ++i) {
    plain.push_back(storm([&] { dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL); }));
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
    for (int k = 0; handle != nullptr && k <= storm_threads; ++k) dlclose(handle);
  }
  bench::report({"module.load_storm.plain_dlopen", bench::median(many), "us", "400 times dlopen",
                 bench::median(plain), bench::median(many) / bench::median(plain), "info"});
});

// --- cycles ---------------------------------------------------------------------------------------

bench::Registered cycles("module.cycles", [] {
  const std::string path = bench::module_path("bench_small");
  const int n = bench::options().quick ? 2000 : bench::options().cycles;
  constexpr int warm_up = 1000;
  auto cycle = [&] {
    if (molt_load(path.c_str(), nullptr, 0, -1) != 0 || molt_unload("bench_small", 0, -1) != 0 ||
        molt_last_error()[0] != '\0') {
      throw std::runtime_error(molt_last_error());
    }
  };
  for (int i = 0; i < warm_up; ++i) cycle();
  Footprint before = footprint();
  std::int64_t from = bench::now_ns();
  for (int i = 0; i < n; ++i) {
    cycle();
    if (i % 5000 == 0) bench::progress("cycle " + std::to_string(i) + " of " + std::to_string(n));
  }
  bench::progress("");
  double per_cycle = static_cast<double>(bench::now_ns() - from) / 1000 / n;
  Footprint after = footprint();

  std::vector<double> plain;
  for (int i = 0; i < 2000; ++i) {
    plain.push_back(once([&] { dlclose(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)); }));
  }
  auto growth = [&](const char* what, long more, const char* unit, const char* goal) {
    auto value = static_cast<double>(more);
    bench::report({std::string("module.cycles.") + what, value, unit,
                   "(" + std::to_string(n) + " cycles)", 0, value, goal});
  };
  growth("mappings", after.mappings - before.mappings, "more", "<= 0");
  growth("fds", after.fds - before.fds, "more", "<= 0");
  growth("threads", after.threads - before.threads, "more", "<= 0");
  growth("rss", after.rss_kib - before.rss_kib, "KiB more", "<= 256");
  bench::report({"module.cycles.time", per_cycle, "us", "dlopen + dlclose", bench::median(plain),
                 per_cycle / bench::median(plain), "info"});
});

}  // namespace
