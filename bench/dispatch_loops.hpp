// dispatch_loops.hpp - the loops whose times dispatch.cpp compares.
//
// Where a loop begins within a cache line changes its time by a quarter on current processors, and
// nobody chooses that: the linker does. So there are several copies of all loops. In `aligned_loops`
// every function and every loop begins on a cache line (the compiler's option -falign-loops=64), ours
// and the rivals' alike; the goals are measured there, for no side has luck. The compiler's own
// placement, four times, each moved on by a quarter of a cache line, is in `placed_loops_*`:
// dispatch.cpp tells what becomes of the figures there.
#pragma once

#include "harness.hpp"
#include "points.hpp"

namespace bench {

// One loop for each chain that is measured.
struct ChainLoops {
  Loop<Request> chain1, chain4, chain8, chain16;
};

struct DispatchLoops {
  Loop<Request> nothing;  // counts, and does nothing else
  Loop<Request> empty;    // the same with an empty hook
  ChainLoops hooks;
  ChainLoops direct;              // the same callbacks called by name
  ChainLoops array;               // the same callbacks called through an array of pointers
  Loop<Request> leaf;             // calls a function that does next to nothing
  Loop<Request> leaf_with_empty;  // the same with an empty hook in that function
};

extern const DispatchLoops aligned_loops, placed_loops_0, placed_loops_16, placed_loops_32,
    placed_loops_48;

// The array loop's data: found anew in memory in every round, as in a program that changes it.
struct CallbackArray {
  int (*const* callbacks)(const Request*);
  unsigned count;
};
extern CallbackArray callback_array[longest_chain + 1];

}  // namespace bench
