// sample.hpp - the registers and the stack of running threads, by perf_event: no signal, no EINTR,
// nothing that the thread could notice. Inside threads/.
//
// A sample is taken by a clock that ticks only while the thread runs in user mode; so it is one moment
// of that thread, with all its registers. Allowed to unprivileged processes where
// perf_event_paranoid <= 2; containers often forbid it. Where kernel events are allowed too (root, or
// perf_event_paranoid <= 1), it is taken as well when the thread leaves its processor, and is then what it
// had when it last left user mode: who yields in a loop beside busy others runs for a microsecond at a time,
// and no clock meets it.
#pragma once

#include <cstdint>
#include <span>

#include "threads/residency.hpp"

namespace molt::threads {

// findings[i] for threads[i]; `unknown` with the reason for those that could not be sampled within
// wait_ns. On the census thread; waits. At most 16.
void sample_all(Census& census, std::span<Thread* const> threads, const RangeSet& ranges,
                std::int64_t wait_ns, Finding* findings);

}  // namespace molt::threads
