// functions.hpp - hook points on functions of a program that declares none.
//
//     before a module with such callbacks is attached:   provide(callbacks)
//     whenever callbacks may have gone:                  release_unused()
//
// Roles      The loader of a module, under the writer's lock here; every thread that calls a hooked
//            function, which takes no lock.
// State      A Function for each that was ever hooked, for ever: two hooks ("lib:f", "lib:f:after"), the
//            seat at its entry (entries/seat.hpp), the record of its wrapper (arch/x86_64/wrap.hpp).
//            While callbacks are attached: the jump at its entry, and a reference on its library.
// Invariants N1 A redirect leads to a stub only while the hooks are registered; both chains may be
//               empty at any moment: then the wrapper goes straight on to the function.
//            N2 Stubs, copies and records are never freed nor used for another function: a thread may
//               stand in one, or come back to it, years later. So taking the jump away needs no proof
//               but that of redirect.hpp, and a module's unload is proven over its own text alone.
//               What the function is, with livepatches in force, the seat says at each call.
//            N3 The library is held (dlopen) while there is a jump in it.
//            N4 A callback's calls of hooked functions are not hooked, nor is what the runtime's own
//               threads call (dispatch.cpp): no callback meets itself, and the
//               control socket works whatever is hooked.
// Order      jump written -> callbacks in force (hooks::change); callbacks out of force and drained ->
//            jump taken away.
// Progress   Callers never wait.
// Death      fork: the child has functions, jumps and chains as they are; it may change them.
//            An exception or a cancellation passes through the wrapper; what is held is a frame of the
//            callback's, as with any hook.
// Refuses    What arch/x86_64/entry.hpp refuses, with its words; indirect functions; the runtime's own;
//            structures by value (signature.hpp); one function under two names; a signature that
//            differs from the one that it was hooked with before.
// Checked by tests/interpose
#pragma once

#include <molt/molt.h>

#include <string_view>

#include "base/result.hpp"

namespace molt::interpose {

// "libc.so.6:open64", ":main", "libc.so.6:open64:after": a colon is what tells them from hooks that a
// host declares.
[[nodiscard]] bool names_function(std::string_view hook);

// Makes every function that these callbacks name hookable: all of them or none. `dry_run`: only
// whether it could. Any thread; blocks for milliseconds.
[[nodiscard]] Status provide(const molt_callback* begin, const molt_callback* end, bool dry_run);

// Takes the jump from functions that no callback is attached to. What cannot be done now is logged and
// tried again by the next call; until then such a function costs its callers some nanoseconds.
void release_unused();

void before_fork();
void after_fork(bool child);

}  // namespace molt::interpose
