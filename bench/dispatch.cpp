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

#include <stdexcept>

#include "benches.hpp"
#include "direct.hpp"
#include "dispatch_loops.hpp"
#include "modules.hpp"

namespace bench {

CallbackArray callback_array[longest_chain + 1];

namespace {

constexpr const DispatchLoops* placements[] = {&placed_loops_0, &placed_loops_16, &placed_loops_32,
                                               &placed_loops_48};

void prepare() {
  need_chains();
  for (unsigned n = 0; n <= longest_chain; ++n) callback_array[n] = {direct, n};
}

void empty_hook(const Options& options, Report& report) {
  Pinned pinned;
  Request request;
  Compared c =
      compare_loops(options.rounds(), aligned_loops.empty, aligned_loops.nothing, &request);
  report.add({"hook.empty", c.ours, "ns", "the loop without it", c.rival, c.ratio,
              Goal::ratio_at_most(1.05)});
}

// A function that would otherwise need no registers saved pays for those that the way through a
// non-empty hook needs. No goal; but a reader should know.
void empty_in_leaf(const Options& options, Report& report) {
  Pinned pinned;
  Request request;
  Compared c =
      compare_loops(options.rounds(), aligned_loops.leaf_with_empty, aligned_loops.leaf, &request);
  report.add({"hook.empty.leaf", c.ours, "ns", "the leaf function without it", c.rival, c.ratio,
              Goal::info()});
}

template <Loop<Request> ChainLoops::*length>
void chain(const char* name, const Goal& goal, const Options& options, Report& report) {
  prepare();
  Pinned pinned;
  Request request;
  Compared c = compare_loops(options.rounds(), aligned_loops.hooks.*length,
                             aligned_loops.direct.*length, &request);
  report.add({name, c.ours, "ns", "direct calls", c.rival, c.ratio, goal});
}

// The same ratio where the compiler put the loops: the median of four placements.
template <Loop<Request> ChainLoops::*length>
void placed(const char* name, const Options& options, Report& report) {
  prepare();
  Pinned pinned;
  Request request;
  std::vector<double> ours, rival, ratios;
  for (const DispatchLoops* loops : placements) {
    Compared c =
        compare_loops(options.rounds(), loops->hooks.*length, loops->direct.*length, &request);
    ours.push_back(c.ours);
    rival.push_back(c.rival);
    ratios.push_back(c.ratio);
  }
  report.add({name, median(ours), "ns", "direct calls, as the compiler placed both", median(rival),
              median(ratios), Goal::info()});
}

template <Loop<Request> ChainLoops::*length>
void array(const char* name, const Options& options, Report& report) {
  prepare();
  Pinned pinned;
  Request request;
  Compared c = compare_loops(options.rounds(), aligned_loops.hooks.*length,
                             aligned_loops.array.*length, &request);
  report.add(
      {name, c.ours, "ns", "unprotected array loop", c.rival, c.ratio, Goal::ratio_at_most(0.65)});
}

void chain1_direct(const Options& o, Report& r) {
  chain<&ChainLoops::chain1>("hook.chain1", Goal::ratio_at_most(1.35), o, r);
}
void chain4_direct(const Options& o, Report& r) {
  chain<&ChainLoops::chain4>("hook.chain4", Goal::ratio_at_most(1.15), o, r);
}
void chain16_direct(const Options& o, Report& r) {
  chain<&ChainLoops::chain16>("hook.chain16", Goal::ratio_at_most(1.05), o, r);
}
void chain1_placed(const Options& o, Report& r) {
  placed<&ChainLoops::chain1>("hook.chain1.placed", o, r);
}
void chain4_placed(const Options& o, Report& r) {
  placed<&ChainLoops::chain4>("hook.chain4.placed", o, r);
}
void chain16_placed(const Options& o, Report& r) {
  placed<&ChainLoops::chain16>("hook.chain16.placed", o, r);
}
void chain8_array(const Options& o, Report& r) {
  array<&ChainLoops::chain8>("hook.chain8.array", o, r);
}
void chain16_array(const Options& o, Report& r) {
  array<&ChainLoops::chain16>("hook.chain16.array", o, r);
}

}  // namespace

std::vector<Bench> dispatch_benches() {
  return {
      {"hook.empty", "an empty hook in a loop", empty_hook},
      {"hook.empty.leaf", "an empty hook in a function that needs no registers", empty_in_leaf},
      {"hook.chain1", "a chain of 1, against a direct call", chain1_direct},
      {"hook.chain4", "a chain of 4, against direct calls", chain4_direct},
      {"hook.chain16", "a chain of 16, against direct calls", chain16_direct},
      {"hook.chain1.placed", "the same, wherever the code lies", chain1_placed},
      {"hook.chain4.placed", "the same, wherever the code lies", chain4_placed},
      {"hook.chain16.placed", "the same, wherever the code lies", chain16_placed},
      {"hook.chain8.array", "a chain of 8, against an unprotected array loop", chain8_array},
      {"hook.chain16.array", "a chain of 16, against an unprotected array loop", chain16_array},
  };
}

}  // namespace bench
