// What a call of a hook costs one thread: hook.empty, hook.chain*.
//
// Fair, because:
//   - Ours is what a user writes, `hook(request)`, over modules built by molt_add_module() and loaded
//     by molt_load().
//   - The floor makes the same calls of the same functions in the same order with the same check of
//     each answer, by name, with nothing between. The array loop lacks all protection, and could not
//     take a callback away safely: it is the rival because it is what one writes first.
//   - Callbacks are three instructions: nothing in them hides what calling them costs.
//   - All loops are placed alike in memory (dispatch_loops.hpp).

#include "benches.hpp"
#include "direct.hpp"
#include "dispatch_loops.hpp"
#include "modules.hpp"

namespace bench {

CallbackArray callback_array[longest_chain + 1];

namespace {

using ChainLoop = Loop<Request> ChainLoops::*;

Compared empty_hook(int rounds) {
  Pinned pinned;
  Request request;
  return compare_loops(rounds, aligned_loops.empty, aligned_loops.nothing, &request);
}

// A function that would otherwise need no registers saved pays for those that the way through a
// non-empty hook needs. No goal; but a reader should know.
Compared empty_in_leaf(int rounds) {
  Pinned pinned;
  Request request;
  return compare_loops(rounds, aligned_loops.leaf_with_empty, aligned_loops.leaf, &request);
}

template <ChainLoop chain>
Compared against_direct(int rounds) {
  need_chains();
  Pinned pinned;
  Request request;
  return compare_loops(rounds, aligned_loops.hooks.*chain, aligned_loops.direct.*chain, &request);
}

template <ChainLoop chain>
Compared against_array(int rounds) {
  need_chains();
  for (unsigned n = 0; n <= longest_chain; ++n) callback_array[n] = {direct, n};
  Pinned pinned;
  Request request;
  return compare_loops(rounds, aligned_loops.hooks.*chain, aligned_loops.array.*chain, &request);
}

// Against direct calls where the compiler put both: the median of four placements.
template <ChainLoop chain>
Compared placed(int rounds) {
  need_chains();
  Pinned pinned;
  Request request;
  std::vector<double> ours, rival, ratios;
  for (const DispatchLoops* loops :
       {&placed_loops_0, &placed_loops_16, &placed_loops_32, &placed_loops_48}) {
    Compared c = compare_loops(rounds / 2, loops->hooks.*chain, loops->direct.*chain, &request);
    ours.push_back(c.ours);
    rival.push_back(c.rival);
    ratios.push_back(c.ratio);
  }
  return {median(ours), median(rival), median(ratios), 0};
}

void add(const char* name, const char* rival, const Goal& goal, const Options& options,
         Report& report) {
  Compared c = measure_in_processes(name, options);
  report.add({name, c.ours, "ns", rival, c.rival, c.ratio, goal});
}

constexpr const char* by_name = "direct calls";
constexpr const char* by_name_anywhere = "direct calls, as the compiler placed both";
constexpr const char* by_array = "unprotected array loop";

}  // namespace

std::vector<Figure> dispatch_figures() {
  return {
      {"hook.empty", empty_hook},
      {"hook.empty.leaf", empty_in_leaf},
      {"hook.chain1", against_direct<&ChainLoops::chain1>},
      {"hook.chain4", against_direct<&ChainLoops::chain4>},
      {"hook.chain16", against_direct<&ChainLoops::chain16>},
      {"hook.chain1.placed", placed<&ChainLoops::chain1>},
      {"hook.chain4.placed", placed<&ChainLoops::chain4>},
      {"hook.chain16.placed", placed<&ChainLoops::chain16>},
      {"hook.chain8.array", against_array<&ChainLoops::chain8>},
      {"hook.chain16.array", against_array<&ChainLoops::chain16>},
  };
}

std::vector<Bench> dispatch_benches() {
  return {
      {"hook.empty", "an empty hook in a loop",
       [](const Options& o, Report& r) {
         add("hook.empty", "the loop without it", Goal::ratio_at_most(1.05), o, r);
       }},
      {"hook.empty.leaf", "an empty hook in a function that needs no registers",
       [](const Options& o, Report& r) {
         add("hook.empty.leaf", "the leaf function without it", Goal::info(), o, r);
       }},
      {"hook.chain1", "a chain of 1, against a direct call",
       [](const Options& o, Report& r) {
         add("hook.chain1", by_name, Goal::ratio_at_most(1.35), o, r);
       }},
      {"hook.chain4", "a chain of 4, against direct calls",
       [](const Options& o, Report& r) {
         add("hook.chain4", by_name, Goal::ratio_at_most(1.15), o, r);
       }},
      {"hook.chain16", "a chain of 16, against direct calls",
       [](const Options& o, Report& r) {
         add("hook.chain16", by_name, Goal::ratio_at_most(1.05), o, r);
       }},
      {"hook.chain1.placed", "hook.chain1 wherever the code lies",
       [](const Options& o, Report& r) {
         add("hook.chain1.placed", by_name_anywhere, Goal::info(), o, r);
       }},
      {"hook.chain4.placed", "hook.chain4 wherever the code lies",
       [](const Options& o, Report& r) {
         add("hook.chain4.placed", by_name_anywhere, Goal::info(), o, r);
       }},
      {"hook.chain16.placed", "hook.chain16 wherever the code lies",
       [](const Options& o, Report& r) {
         add("hook.chain16.placed", by_name_anywhere, Goal::info(), o, r);
       }},
      {"hook.chain8.array", "a chain of 8, against an unprotected array loop",
       [](const Options& o, Report& r) {
         add("hook.chain8.array", by_array, Goal::ratio_at_most(0.65), o, r);
       }},
      {"hook.chain16.array", "a chain of 16, against an unprotected array loop",
       [](const Options& o, Report& r) {
         add("hook.chain16.array", by_array, Goal::ratio_at_most(0.65), o, r);
       }},
  };
}

}  // namespace bench
