// poison.hpp - what follows from a state that cannot be (P7): no more operations, and nothing else.
//
// Who finds one can go neither on nor back: what was begun is neither as it was nor as it was to be. It says so here
// and returns an error. The host is never ended.
//
// State      One text, written once; a child of fork has it too.
// Invariants Q1 From then on no operation begins: loading, unloading, enabling, patching, collecting ask operable() first,
//               and so does whoever waits for the end of one.
//            Q2 No code and no trampoline is freed any more (module/unload.cpp, arch/x86_64/pool.cpp): nobody knows
//               what leads there.
//            Q3 All that is in force stays so: hooks are called, calls of patched functions go on to where they went,
//               threads stay on their side of a transition.
// Checked by tests/arch/redirect_test.cpp, tests/livepatch/poison_test.cpp.
#pragma once

#include "base/result.hpp"

namespace molt {

// The first reason counts. Any thread, any lock held; not for signal handlers.
[[gnu::format(printf, 1, 2)]] void poison(const char* format, ...);

// "" where nothing is wrong. Async-signal-safe.
const char* poisoned();

// ENOTRECOVERABLE, with the reason and what to do.
[[nodiscard]] Status operable();

}  // namespace molt
