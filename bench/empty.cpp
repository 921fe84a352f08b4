// hook.empty512: what an empty hook costs in a program that is full of them.
//
// In a loop around a single empty hook everything is in the first-level caches and hides behind the
// loop itself. Here 512 hooks are passed in turn, each a different object with code of its own, in
// straight-line code: 20 KiB of hooks, and of code more than the first-level cache holds. The loop
// without them is the same loop over the same functions without a hook in them: nothing is left there
// to hide behind. The figure is the difference, a hook, as the median of the rounds.

#include "benches.hpp"
#include "empty_sites.hpp"
#include "harness.hpp"

namespace bench {
namespace {

template <SiteRun... files>
[[gnu::noinline]] void all_sites(std::uint64_t iterations, Request* request) {
  int errors = 0;
  for (std::uint64_t i = 0; i < iterations; ++i) ((errors |= files(request)), ...);
  keep(errors);
}

Compared measure(int rounds) {
  Pinned pinned;
  Request request;
  return compare_loops<Request>(
      rounds, all_sites<with_hooks_0, with_hooks_128, with_hooks_256, with_hooks_384>,
      all_sites<without_hooks_0, without_hooks_128, without_hooks_256, without_hooks_384>,
      &request);
}

void empty512(const Options& options, Report& report) {
  // An iteration of the loops passes all 512.
  Compared c = measure_in_processes("hook.empty512", options);
  report.add({"hook.empty512", c.difference / empty_sites, "ns more", "", 0, 0,
              Goal::value_at_most(0.2, "ns")});
}

}  // namespace

std::vector<Figure> empty_figures() { return {{"hook.empty512", measure}}; }

std::vector<Bench> empty_benches() {
  return {{"hook.empty512", "512 different empty hooks, a hook", empty512}};
}

}  // namespace bench
