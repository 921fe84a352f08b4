// dispatch_loops.hpp - the loops whose times dispatch.cpp compares.
//
// Where a loop begins within a cache line changes its time by a quarter on current processors, and
// nobody chooses that: the linker does. So there are several copies of all loops. In `aligned_loops`
// every function and every loop begins on a cache line (the compiler's option -falign-loops=64), ours
// and the rivals' alike; the goals are measured there, for no side has luck. The compiler's own
// placement, four times, each moved on by a quarter of a cache line, is in `placed_loops_*`:
// dispatch.cpp tells what becomes of the figures there.
//
// How far a callback lies from its caller counts as well. Processors that keep the targets of
// branches as 32 bits and a page of upper halves (Intel since Golden Cove) need one to two cycles
// more for each branch that leaves its 4 GiB, and a call of a module has two: there and back. A
// program built as a PIE lies at 0x55..., all shared objects at 0x7f...; so every call from a program
// into any library pays that, and a direct call inside the program does not. To compare calling
// with calling, not one address with another, caller and callbacks of both sides lie among the
// shared objects: the loops are in a library. `far_loops` are the same loops in the program.
#pragma once

#include "direct.hpp"
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
  // A hook with a callback that is declared mostly empty, and an empty one that is declared filled.
  Loop<Request> chain1_rare, empty_filled;
  ChainLoops hooks;
  ChainLoops direct;   // the same callbacks called by name
  ChainLoops array;    // the same callbacks called through an array of pointers
  ChainLoops bare;     // the modules' callbacks called through pointers, and nothing else
  Loop<Request> leaf;  // calls a function that does next to nothing
  Loop<Request> leaf_with_empty;  // the same with an empty hook in that function
  Callback** callbacks;           // what `bare` calls: to be filled in
};

extern const DispatchLoops aligned_loops, placed_loops_0, placed_loops_16, placed_loops_32,
    placed_loops_48;
// In the program; known to the library as far_loops_of_program.
extern const DispatchLoops far_loops;
extern const DispatchLoops* far_loops_of_program;

[[gnu::visibility("default")]] int run_program(int argc, char** argv,
                                               const DispatchLoops& in_program);

}  // namespace bench
