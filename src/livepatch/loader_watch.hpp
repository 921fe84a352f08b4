// loader_watch.hpp - libraries that the program loads and unloads itself, by dlopen() and dlclose().
//
//     on_change() <- the loader's list is complete: a library that a patch names is hooked
//     come()      <- before the first of its constructors: library_coming() (objects.cpp)
//     go()        <- behind the last of its destructors: library_going()
//
// Roles      The thread that calls dlopen or dlclose, which holds the loader's lock, and is a guest of
//            the engine (Guest, internal.hpp). Operations, which hook what is there already.
// State      At _dl_debug_state() a jump: an empty function of the dynamic loader, for debuggers, which
//            it calls when its list has changed and before it unmaps. For each library that is, or is
//            to be, patched a slot: DT_INIT and DT_FINI of its dynamic section name two functions of
//            ours, which call the library's own.
// Invariants W1 A library is patched when it is relocated and before any of its code has run, IFUNC
//               resolvers apart: DT_INIT comes before all other constructors.
//            W2 Its functions go back when its destructors have run, DT_FINI being the last of them,
//               and while it is still mapped.
//            W3 No library is unmapped while an operation works, and none begins while one is: the
//               loader calls before it unmaps, waits there, and is a guest until it calls again.
//            W4 A slot keeps its library until that is unmapped. Who has read one of ours as DT_INIT,
//               and calls it later, comes to the library's own in any case.
// Order      Operation: watch_begins() before the list of objects is read. Loader: list changed, then
//            on_change(). Whoever is second sees the first's library, or patch. The same for its state
//            before it unmaps: watch_begins() waits, or on_change() does.
//            At on_change() while it loads, the loader has a second lock, which pthread_create()
//            needs: nothing is waited for there but the short locks of the names and slots.
// Progress   A thread that is held up in a transition, and that the loader calls from, looks at its own frames
//            there, and changes over. The loader waits for the step under way (milliseconds; seconds if a
//            thread has to leave a function's first bytes), and for who wants to begin one, never for
//            callbacks of an operation. A library with nothing to do with patches waits as well, if it
//            comes or goes at that moment.
// Death      exit() runs destructors too: there nothing is taken back. fork: the child has slots and
//            jump as they are. dlopen() that fails behind on_change() unmaps without destructors: what
//            was patched is forgotten then, and only post_unpatch called.
// Refuses    Where the jump cannot be written (a debugger's int3 is there), or a library has no DT_INIT
//            and DT_FINI, or all slots are taken, a library that is loaded already is patched and stays
//            loaded from then on (RTLD_NODELETE); one that comes later is not patched. Namespaces of
//            dlmopen(): neither seen nor patched.
// Checked by tests/livepatch/library_test.cpp
#pragma once

#include "base/result.hpp"
#include "elf/loaded_symbols.hpp"

namespace molt::livepatch {

struct Patch;

// Before the token: looks after the libraries that the patch names, from now until it is released. What
// cannot be watched is kept from being unloaded.
void watch_begins(Patch& patch);
void watch_no_more(const Patch& patch);  // by a patch's release

// Whether its coming and going is noticed from now on.
bool watch_library(const elf::NamedObject& library);

// --- objects.cpp, called by the loader's thread as a guest ----------------------------------------------

void library_coming(const elf::Range& extent);
void library_going(const elf::Range& extent);
// Those that are patched and not in memory any more.
void forget_vanished();

}  // namespace molt::livepatch
