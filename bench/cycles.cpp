// module.cycles: what is left of a module that came and went a hundred thousand times.
//
// Every cycle is a molt_load() and a molt_unload() that must end unmapped; the module is called in
// between, so that this thread has been inside it. The first thousand cycles are not counted: pools
// and caches fill up once. What the process holds then is compared with what it holds at the end.

#include <dlfcn.h>

#include <stdexcept>

#include "benches.hpp"
#include "harness.hpp"
#include "hooks.hpp"
#include "modules.hpp"
#include "process.hpp"

namespace bench {
namespace {

void cycle() {
  load("bench_small");
  Request request;
  request.objections = 1;
  if (busy(&request) != 1) throw std::runtime_error("the module that was loaded is not called");
  unload("bench_small");
  if (busy(&request) != 0) throw std::runtime_error("a module that was unloaded was called");
}

double dlopen_ns() {
  constexpr int n = 200;
  std::string path = module_path("bench_small");
  std::int64_t from = now_ns();
  for (int i = 0; i < n; ++i) {
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr || dlclose(handle) != 0) throw std::runtime_error("dlopen failed");
  }
  return static_cast<double>(now_ns() - from) / n;
}

void cycles(const Options& options, Report& report) {
  constexpr long warm_up = 1000, batch = 500;
  // Once, so that what the sampling itself takes is there before.
  holdings();
  for (long i = 0; i < warm_up; ++i) cycle();
  Holdings before = holdings();
  std::vector<double> ns, rival_ns, ratios;
  for (long done = 0; done < options.cycles; done += batch) {
    long n = std::min(batch, options.cycles - done);
    std::int64_t from = now_ns();
    for (long i = 0; i < n; ++i) cycle();
    ns.push_back(static_cast<double>(now_ns() - from) / static_cast<double>(n));
    rival_ns.push_back(dlopen_ns());
    ratios.push_back(rival_ns.back() / ns.back());
    report.progress("module.cycles: " + std::to_string(done + n) + " of " +
                    std::to_string(options.cycles));
  }
  Holdings after = holdings();
  auto growth = [&](const char* name, std::int64_t Holdings::*what, const char* unit,
                    const Goal& goal) {
    report.add({name, static_cast<double>(after.*what - before.*what), unit, "", 0, 0, goal});
  };
  growth("module.cycles.mappings", &Holdings::mappings, "more", Goal::value_is_zero());
  growth("module.cycles.descriptors", &Holdings::descriptors, "more", Goal::value_is_zero());
  growth("module.cycles.threads", &Holdings::threads, "more", Goal::value_is_zero());
  growth("module.cycles.rss", &Holdings::rss_kib, "KiB more", Goal::value_at_most(256, "KiB"));
  report.add({"module.cycles.count", static_cast<double>(options.cycles), "cycles", "", 0, 0,
              Goal::info()});
  report.add({"module.cycles.rate", 1e9 / median(ns), "1/s", "bare dlopen() and dlclose()",
              1e9 / median(rival_ns), median(ratios), Goal::info()});
}

}  // namespace

std::vector<Bench> cycle_benches() {
  return {{"module.cycles", "what many loads and unloads leave behind", cycles}};
}

}  // namespace bench
