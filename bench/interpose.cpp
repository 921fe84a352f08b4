// interpose.*: what a hook on a function costs its callers that was built without Molt: the same call,
// by way of a function pointer, to the function and to a twin of it that is not hooked.
//
//     before, after, both    one module with an empty callback on that side
//     four                   four modules with a callback before it
//     careful                before a function that is not exported: all registers are kept
//     unhooked               once the module has gone: the function is as it was

#include "benches.hpp"
#include "harness.hpp"
#include "modules.hpp"

extern "C" {
long bench_victim(long);
long bench_victim_plain(long);
extern long (*bench_victim_hidden_at)(long);
}

namespace bench {
namespace {

struct Calls {
  long (*ours)(long);
  long (*rival)(long);
};

[[gnu::noinline]] long repeat(std::uint64_t n, long (*function)(long)) {
  long a = 1;
  for (; n != 0; --n) {
    a = function(a) & 0xff;
    barrier();
  }
  return a;
}

Compared per_call(int rounds, long (*ours)(long) = bench_victim) {
  Pinned pinned;
  Calls calls{ours, bench_victim_plain};
  return compare_loops<Calls>(
      rounds, [](std::uint64_t n, Calls* both) { keep(repeat(n, both->ours)); },
      [](std::uint64_t n, Calls* both) { keep(repeat(n, both->rival)); }, &calls);
}

Compared with(int rounds, std::initializer_list<const char*> modules,
              long (*ours)(long) = bench_victim) {
  for (const char* module : modules) load(module);
  const Compared c = per_call(rounds, ours);
  for (const char* module : modules) unload(module);
  return c;
}

Compared before(int rounds) { return with(rounds, {"bench_before"}); }
Compared after(int rounds) { return with(rounds, {"bench_after"}); }
Compared both(int rounds) { return with(rounds, {"bench_both"}); }
Compared four(int rounds) {
  return with(rounds, {"bench_before", "bench_before_2", "bench_before_3", "bench_before_4"});
}
Compared careful(int rounds) { return with(rounds, {"bench_careful"}, bench_victim_hidden_at); }
Compared unhooked(int rounds) {
  load("bench_both");
  unload("bench_both");
  return per_call(rounds);
}

void cost(const char* name, Goal goal, const Options& options, Report& report) {
  const Compared c = measure_in_processes(name, options);
  report.add({std::string(name) + ".cost", c.difference, "ns", "", 0, 0, std::move(goal)});
}

void run(const Options& options, Report& report) {
  constexpr double goal_ns = 5;
  cost("interpose.before", Goal::value_at_most(goal_ns, "ns"), options, report);
  cost("interpose.after", Goal::value_at_most(goal_ns, "ns"), options, report);
  cost("interpose.both", Goal::info(), options, report);
  cost("interpose.four", Goal::info(), options, report);
  cost("interpose.careful", Goal::info(), options, report);
  const Compared c = measure_in_processes("interpose.unhooked", options);
  report.add({"interpose.unhooked", c.ours, "ns", "never hooked", c.rival, c.ratio,
              Goal::ratio_at_most(1.05)});
}

}  // namespace

std::vector<Figure> interpose_figures() {
  return {{"interpose.before", before},   {"interpose.after", after},
          {"interpose.both", both},       {"interpose.four", four},
          {"interpose.careful", careful}, {"interpose.unhooked", unhooked}};
}

std::vector<Bench> interpose_benches() {
  return {{"interpose", "a hook on a function of a library that knows nothing of it", run}};
}

}  // namespace bench
