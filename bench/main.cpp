// molt-bench - prints every figure beside its rival's, as a table and as JSON.

#include "harness.hpp"

#include <molt/molt.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fnmatch.h>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <thread>

namespace bench {
namespace {

Options g_options;
std::vector<Bench>& benches() {
  static std::vector<Bench> all;
  return all;
}
std::vector<Record> g_records;
bool g_failed = false;
std::string g_modules;

bool goal_holds(const std::string& goal, double ratio) {
  double wanted = 0;
  if (std::sscanf(goal.c_str(), "<= %lf", &wanted) == 1) return ratio <= wanted;
  if (std::sscanf(goal.c_str(), ">= %lf", &wanted) == 1) return ratio >= wanted;
  if (std::sscanf(goal.c_str(), "== %lf", &wanted) == 1) return ratio == wanted;
  return true;  // "info"
}

void print(const Record& r) {
  char value[64], rival[64] = "";
  std::snprintf(value, sizeof value, "%.4g %s", r.value, r.unit.c_str());
  if (!r.rival.empty()) std::snprintf(rival, sizeof rival, "%.4g", r.rival_value);
  std::printf("%-34s %16s  %-38s %10s %9.3f  %-9s %s\n", r.name.c_str(), value, r.rival.c_str(),
              rival, r.ratio, r.goal.c_str(),
              r.goal == "info" ? "" : r.holds ? "holds" : "MISSED");
  std::fflush(stdout);
}

int usage() {
  std::fprintf(stderr,
               "usage: molt-bench [--quick] [--list] [--json FILE] [--cycles N] [NAME...]\n"
               "NAME selects by prefix or pattern: hook, 'module.*', hook.chain4\n");
  return 2;
}

}  // namespace

const Options& options() { return g_options; }
void add(Bench bench) { benches().push_back(bench); }

void report(Record record) {
  record.holds = goal_holds(record.goal, record.ratio);
  print(record);
  g_records.push_back(std::move(record));
}

void failed(const std::string& name, const std::string& why) {
  std::fprintf(stderr, "%s: could not be measured: %s\n", name.c_str(), why.c_str());
  g_failed = true;
}

void progress(const std::string& text) {
  if (isatty(2)) std::fprintf(stderr, "\r\033[K%s", text.c_str());
}

std::int64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
}

void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<unsigned>(cpu) % std::max(1u, std::thread::hardware_concurrency()), &set);
  sched_setaffinity(0, sizeof set, &set);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? NAN : values[values.size() / 2];
}

Pair paired(const std::function<void(std::uint64_t)>& ours,
            const std::function<void(std::uint64_t)>& rival, int pairs, int run_ms) {
  pin(1);
  if (g_options.quick) pairs = std::max(5, pairs / 4);
  auto timed = [](const auto& f, std::uint64_t n) {
    std::int64_t from = now_ns();
    f(n);
    return static_cast<double>(now_ns() - from) / static_cast<double>(n);
  };
  std::uint64_t n = 1000;
  while (timed(rival, n) * static_cast<double>(n) < run_ms * 1e6) n *= 2;
  std::uint64_t n_ours = n;
  while (n_ours > 1 && timed(ours, n_ours) * static_cast<double>(n_ours) > 4e6 * run_ms) n_ours /= 2;
  std::vector<double> a, b, ratios;
  for (int i = -2; i < pairs; ++i) {
    double x, y;
    // Who goes first alternates, too.
    if (i % 2) {
      x = timed(ours, n_ours);
      y = timed(rival, n);
    } else {
      y = timed(rival, n);
      x = timed(ours, n_ours);
    }
    if (i < 0) continue;
    a.push_back(x);
    b.push_back(y);
    ratios.push_back(x / y);
  }
  return {median(a), median(b), median(ratios)};
}

double throughput(int threads, int ms, const std::function<void(std::uint64_t)>& body) {
  constexpr std::uint64_t batch = 2000;
  std::atomic<int> ready{0};
  std::atomic<bool> go{false}, stop{false};
  std::vector<double> rates(static_cast<std::size_t>(threads));
  std::vector<std::thread> all;
  for (int t = 0; t < threads; ++t) {
    all.emplace_back([&, t] {
      pin(threads == 1 ? 1 : t);
      body(batch);
      ready.fetch_add(1, std::memory_order_acq_rel);
      while (!go.load(std::memory_order_acquire)) sched_yield();
      std::int64_t from = now_ns();
      std::uint64_t done = 0;
      while (!stop.load(std::memory_order_relaxed)) {
        body(batch);
        done += batch;
      }
      rates[static_cast<std::size_t>(t)] =
          static_cast<double>(done) * 1e9 / static_cast<double>(now_ns() - from);
    });
  }
  while (ready.load(std::memory_order_acquire) < threads) sched_yield();
  go.store(true, std::memory_order_release);
  usleep(static_cast<useconds_t>(ms) * 1000);
  stop.store(true, std::memory_order_relaxed);
  for (std::thread& thread : all) thread.join();
  double sum = 0;
  for (double rate : rates) sum += rate;
  return sum;
}

Pair paired_throughput(int threads_ours, const std::function<void(std::uint64_t)>& ours,
                       int threads_rival, const std::function<void(std::uint64_t)>& rival,
                       int pairs, int run_ms) {
  if (g_options.quick) pairs = 3;
  std::vector<double> a, b, ratios;
  for (int i = -1; i < pairs; ++i) {
    double x = throughput(threads_ours, run_ms, ours);
    double y = throughput(threads_rival, run_ms, rival);
    if (i < 0) continue;
    a.push_back(x);
    b.push_back(y);
    ratios.push_back(x / y);
  }
  return {median(a), median(b), median(ratios)};
}

std::string module_path(const std::string& name) { return g_modules + "/" + name + ".so"; }

void must_load(const std::string& name) {
  if (molt_load(module_path(name).c_str(), nullptr, 0, -1) != 0) {
    throw std::runtime_error("load of " + name + ": " + molt_last_error());
  }
}
void must_unload(const std::string& name) {
  if (molt_unload(name.c_str(), 0, -1) != 0 || molt_last_error()[0] != '\0') {
    throw std::runtime_error("unload of " + name + ": " + molt_last_error());
  }
}

int run(int argc, char** argv) {
  std::vector<std::string> names;
  std::string json;
  bool list = false;
  for (int i = 1; i < argc; ++i) {
    std::string arg = argv[i];
    if (arg == "--quick") {
      g_options.quick = true;
    } else if (arg == "--list") {
      list = true;
    } else if (arg == "--json" && i + 1 < argc) {
      json = argv[++i];
    } else if (arg == "--cycles" && i + 1 < argc) {
      g_options.cycles = std::atoi(argv[++i]);
    } else if (arg[0] == '-') {
      return usage();
    } else {
      names.push_back(arg);
    }
  }
  char self[4096];
  ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
  std::string folder(self, length > 0 ? static_cast<std::size_t>(length) : 0);
  g_modules = folder.substr(0, folder.rfind('/')) + "/../lib/bench";

  auto wanted = [&](const char* name) {
    return names.empty() || std::any_of(names.begin(), names.end(), [&](const std::string& n) {
             return std::strncmp(name, n.c_str(), n.size()) == 0 ||
                    fnmatch(n.c_str(), name, 0) == 0;
           });
  };
  bool any = false;
  if (!list) {
    std::printf("%-34s %16s  %-38s %10s %9s  %-9s\n", "figure", "value", "rival", "its value",
                "ratio", "goal");
  }
  for (const Bench& bench : benches()) {
    if (!wanted(bench.name)) continue;
    any = true;
    if (list) {
      std::printf("%s\n", bench.name);
      continue;
    }
    try {
      bench.run();
    } catch (const std::exception& e) {
      failed(bench.name, e.what());
    }
  }
  if (!any) {
    std::fprintf(stderr, "molt-bench: nothing is named so; see --list\n");
    return 2;
  }
  if (!json.empty()) {
    nlohmann::json out = nlohmann::json::array();
    for (const Record& r : g_records) {
      out.push_back({{"name", r.name},
                     {"value", r.value},
                     {"unit", r.unit},
                     {"rival", r.rival},
                     {"rival_value", r.rival_value},
                     {"ratio", r.ratio},
                     {"goal", r.goal},
                     {"holds", r.holds}});
    }
    FILE* file = std::fopen(json.c_str(), "w");
    if (file == nullptr || std::fprintf(file, "%s\n", out.dump(2).c_str()) < 0 ||
        std::fclose(file) != 0) {
      std::perror(json.c_str());
      return 1;
    }
  }
  return g_failed ? 1 : 0;
}

}  // namespace bench

int main(int argc, char** argv) { return bench::run(argc, argv); }
