// own_frames.hpp - the calling thread's own stack, frame by frame.
//
// A scan takes every word of a stack for a return address. The thread that asks for an operation has
// many stale ones: it may have called the very functions a moment ago, at the depth at which it stands
// in the runtime now. It alone can be told the truth, by the unwinder of the C++ runtime, which needs
// no guess where it begins. Not for other threads, and not for gates: it is not async-signal-safe.
#pragma once

#include "threads/ranges.hpp"

namespace molt::threads {

// True only if all frames up to the thread's first one are known, and none of them is in the ranges.
bool own_frames_are_out(const RangeSet& ranges);

}  // namespace molt::threads
