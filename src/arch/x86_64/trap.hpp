// trap.hpp - SIGTRAP while a first byte is int3: the thread goes on where the redirect will lead.
//
// Roles      Threads that meet the int3 (any, in any state but with SIGTRAP unblocked); the one writer.
// State      A table of sites, grown never shrunk: address, and where to go while its int3 is there.
// Invariants S1 A site's destination is set before its int3 is written and cleared after it is gone.
//            S2 A site stays in the table for ever: a trap that is delivered late, when the int3 has
//               gone, finds the site without a destination and executes the entry again.
//            S2b Byte and destination are read again if the site was changed between the two: an int3 of
//               the next change must not pass for somebody else's.
//            S3 The handler stays installed once it was: a late trap must never meet the default
//               action. Whatever is not ours goes to what the host had installed.
//            S4 What the host put over ours, and may call the one before it (ours), is not what ours calls:
//               ours over that is another function, which knows what it was put over.
//            S5 As long as a site has a destination the host's own handler runs with SIGTRAP open, so that the
//               functions that it calls may have an int3. One that had begun before is seen by whoever
//               looks for threads that block SIGTRAP after the sites were armed.
//            S6 No other handler of the host blocks SIGTRAP while it runs (sa_mask) once trap_prepare() was
//               called: it is taken out of the mask, as from threads' own (attach/masks.hpp). Who had entered before is seen
//               as in S5.
//            S7 The trap that is handled is the one whose frame lies on the stack, whatever the handler was called
//               with: a host's handler may call the one before it with the number alone.
//            S8 Nothing interrupts our handler but faults: on an alternate stack lies one frame of ours at most,
//               above the handler of the host that met the int3. Three frames do not fit into the 8 KiB of a
//               SIGSTKSZ where each has the registers of AVX-512. The host's own handler runs with the mask that it would have.
// Order      destination (release) -> int3 byte -> serialise_cores(); handler: site (acquire).
// Death      Nothing is allocated in the handler; it takes no lock.
// Refuses    Nothing. Threads' own masks are the caller's to look at.
//            A host that puts its own handler over ours while an int3 is there gets our traps until
//            trap_stay() is called next: on either side of a proof, and at each of its looks, 20 ms apart at most.
// Checked by tests/arch/pool_test.cpp (Trap), attach.hazards.traps_of_its_own; broken: attach.finds.NO_CHAIN, .ONE_LAYER,
//            .HANDLER_BLOCKS, .MASKS_STAY, .TRUSTED_CONTEXT.
#pragma once

#include "arch/x86_64/code.hpp"
#include "base/result.hpp"

namespace molt::arch {

// Installs the handler, or installs it again where the host has put its own over it.
Status trap_prepare();
// The latter alone, while an int3 is there.
Status trap_stay();
// Whether a thread may be in a handler of the host's that blocks SIGTRAP: S5 wants a look after the sites are armed.
bool trap_host_may_block();
// ENOMEM: nothing has changed.
Status trap_arm(CodeAddress site, CodeAddress destination);
void trap_disarm(CodeAddress site);
// Traps forwarded since the start of the process.
std::uint64_t trap_count();
// The text of the handler. A thread in it may hold a destination in a register only.
CodeRange trap_handler_range();

}  // namespace molt::arch
