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
#include "hooks.hpp"
#include "modules.hpp"

namespace bench {

const DispatchLoops* far_loops_of_program;

namespace {

using ChainLoop = Loop<Request> ChainLoops::*;

// The chains, and the modules' callbacks for those who call them without protection.
void need_callbacks() {
  need_chains();
  auto walk = chain16.walk_async();
  for (unsigned k = 0; k < longest_chain; ++k) {
    Callback* callback = walk.next();
    if (callback == nullptr) throw std::runtime_error("the chain of 16 is shorter");
    aligned_loops.callbacks[k] = far_loops_of_program->callbacks[k] = callback;
  }
}

Compared empty_hook(int rounds) {
  Pinned pinned;
  Request request;
  return compare_loops(rounds, aligned_loops.empty, aligned_loops.nothing, &request);
}

// What it costs to have said the wrong thing of a hook (hook_point's `mostly_empty`).
Compared empty_declared_filled(int rounds) {
  Pinned pinned;
  Request request;
  return compare_loops(rounds, aligned_loops.empty_filled, aligned_loops.nothing, &request);
}
Compared chain1_declared_empty(int rounds) {
  need_chains();
  Pinned pinned;
  Request request;
  return compare_loops(rounds, aligned_loops.chain1_rare, aligned_loops.direct.chain1, &request);
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
  Pinned pinned;
  Request request;
  return compare_loops(rounds, aligned_loops.hooks.*chain, aligned_loops.array.*chain, &request);
}

template <ChainLoop chain>
Compared against_bare(int rounds) {
  need_callbacks();
  Pinned pinned;
  Request request;
  return compare_loops(rounds, aligned_loops.hooks.*chain, aligned_loops.bare.*chain, &request);
}

// The floor against the array: what is left when nothing but direct calls is left.
template <ChainLoop chain>
Compared direct_against_array(int rounds) {
  Pinned pinned;
  Request request;
  return compare_loops(rounds, aligned_loops.direct.*chain, aligned_loops.array.*chain, &request);
}

// From the program, which lies more than 4 GiB away from every module.
template <ChainLoop chain, ChainLoops DispatchLoops::*rival>
Compared far(int rounds) {
  need_callbacks();
  const DispatchLoops& loops = *far_loops_of_program;
  Pinned pinned;
  Request request;
  return compare_loops(rounds, loops.hooks.*chain, (loops.*rival).*chain, &request);
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
constexpr const char* bare = "the modules' callbacks, unprotected";
constexpr const char* by_name_far = "direct calls, all in the program";
constexpr const char* bare_far = "the same from the program";

Bench info(const char* name, const char* what, const char* rival) {
  return {name, what,
          [name, rival](const Options& o, Report& r) { add(name, rival, Goal::info(), o, r); }};
}

}  // namespace

std::vector<Figure> dispatch_figures() {
  return {
      {"hook.empty", empty_hook},
      {"hook.empty.filled", empty_declared_filled},
      {"hook.empty.leaf", empty_in_leaf},
      {"hook.chain1.rare", chain1_declared_empty},
      {"hook.chain1", against_direct<&ChainLoops::chain1>},
      {"hook.chain4", against_direct<&ChainLoops::chain4>},
      {"hook.chain16", against_direct<&ChainLoops::chain16>},
      {"hook.chain1.placed", placed<&ChainLoops::chain1>},
      {"hook.chain4.placed", placed<&ChainLoops::chain4>},
      {"hook.chain16.placed", placed<&ChainLoops::chain16>},
      {"hook.chain1.bare", against_bare<&ChainLoops::chain1>},
      {"hook.chain4.bare", against_bare<&ChainLoops::chain4>},
      {"hook.chain16.bare", against_bare<&ChainLoops::chain16>},
      {"hook.chain1.far", far<&ChainLoops::chain1, &DispatchLoops::direct>},
      {"hook.chain4.far", far<&ChainLoops::chain4, &DispatchLoops::direct>},
      {"hook.chain16.far", far<&ChainLoops::chain16, &DispatchLoops::direct>},
      {"hook.chain1.far.bare", far<&ChainLoops::chain1, &DispatchLoops::bare>},
      {"hook.chain4.far.bare", far<&ChainLoops::chain4, &DispatchLoops::bare>},
      {"hook.chain16.far.bare", far<&ChainLoops::chain16, &DispatchLoops::bare>},
      {"hook.chain8.array", against_array<&ChainLoops::chain8>},
      {"direct.chain8.array", direct_against_array<&ChainLoops::chain8>},
      {"direct.chain16.array", direct_against_array<&ChainLoops::chain16>},
      {"hook.chain16.array", against_array<&ChainLoops::chain16>},
  };
}

std::vector<Bench> dispatch_benches() {
  auto at_most = [](const char* name, const char* what, const char* rival, double limit) {
    return Bench{name, what, [=](const Options& o, Report& r) {
                   add(name, rival, Goal::ratio_at_most(limit), o, r);
                 }};
  };
  return {
      at_most("hook.empty", "an empty hook in a loop", "the loop without it", 1.05),
      info("hook.empty.filled", "an empty hook that was declared filled", "the loop without it"),
      info("hook.empty.leaf", "an empty hook in a function that needs no registers",
           "the leaf function without it"),
      at_most("hook.chain1", "a chain of 1, against a direct call", by_name, 1.35),
      at_most("hook.chain4", "a chain of 4, against direct calls", by_name, 1.15),
      at_most("hook.chain16", "a chain of 16, against direct calls", by_name, 1.05),
      info("hook.chain1.rare", "a chain of 1 on a hook that was declared empty", by_name),
      info("hook.chain1.bare", "a chain of 1, against an unprotected call of it", bare),
      info("hook.chain4.bare", "a chain of 4, against unprotected calls of it", bare),
      info("hook.chain16.bare", "a chain of 16, against unprotected calls of it", bare),
      info("hook.chain1.far", "hook.chain1 from more than 4 GiB away", by_name_far),
      info("hook.chain4.far", "hook.chain4 from more than 4 GiB away", by_name_far),
      info("hook.chain16.far", "hook.chain16 from more than 4 GiB away", by_name_far),
      info("hook.chain1.far.bare", "the same, against an unprotected call", bare_far),
      info("hook.chain4.far.bare", "the same, against unprotected calls", bare_far),
      info("hook.chain16.far.bare", "the same, against unprotected calls", bare_far),
      info("hook.chain1.placed", "hook.chain1 wherever the code lies", by_name_anywhere),
      info("hook.chain4.placed", "hook.chain4 wherever the code lies", by_name_anywhere),
      info("hook.chain16.placed", "hook.chain16 wherever the code lies", by_name_anywhere),
      at_most("hook.chain8.array", "a chain of 8, against an unprotected array loop", by_array,
              0.65),
      at_most("hook.chain16.array", "a chain of 16, against an unprotected array loop", by_array,
              0.65),
      info("direct.chain8.array", "8 direct calls, against an unprotected array loop", by_array),
      info("direct.chain16.array", "16 direct calls, against an unprotected array loop", by_array),
  };
}

}  // namespace bench
