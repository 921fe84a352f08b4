// dispatch.hpp - what a call of a hooked function passes through. Any thread, in signal handlers too;
// no locks, no memory but a thread's first record of frames (threads/record.hpp).
#pragma once

#include <molt/molt.h>

#include "arch/x86_64/wrap.hpp"

namespace molt::interpose {

// Once, before the first function is hooked.
void dispatch_setup();

arch::Passage call_before(arch::WrapRecord* record, molt_call* call);
void call_after(arch::WrapRecord* record, molt_call* call);

}  // namespace molt::interpose
