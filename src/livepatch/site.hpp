// site.hpp - one patched function of the program or a library: its versions, and what sits at its
// entry.
//
// Roles      The operation that has the engine's token (engine.hpp) changes sites; any thread runs
//            through them at any moment.
// State      The stack of versions, newest first; below the last one the original. At the entry:
//            nothing, a direct jump to the version on top, or a jump to a gate: a trampoline of one
//            transition that leads to one of two versions by the calling thread's word (gate.hpp).
//            Where a hook is around the function, it goes on to one of these (entries/seat.hpp).
// Invariants F1 Outside of a transition that concerns it the entry leads to the version on top
//               (a nop: to the original).
//            F2 A gate's two ways are the versions used before and after the transition. They never
//               change; a reversal changes which of them threads take.
//            F3 Code that a thread may still be in - gates, displaced copies, jumps - is freed only
//               after a proof; until then it counts as old code of every transition.
// Death      The object that the function is in may be unmapped: then its sites are forgotten, and
//            nothing is written to its memory any more.
// Refuses    What arch/x86_64/entry.hpp refuses, with its words; functions of the runtime itself.
// Checked by tests/livepatch
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "arch/x86_64/gate.hpp"
#include "arch/x86_64/names.hpp"
#include "base/result.hpp"
#include "elf/loaded_symbols.hpp"
#include "entries/seat.hpp"
#include "livepatch/gate.hpp"
#include "threads/ranges.hpp"

namespace molt::livepatch {

struct Func;

// The gate of one site in one transition; recycled when no thread can stand in settle() with it. Lies in
// memory of the runtime's own: the versions that it names may be gone by then.
struct SiteGate {
  arch::GateRecord record;
  arch::CodeSlot slot;
  std::uint32_t generation = 0;
  arch::NamedCode* name = nullptr;
};

struct Site {
  std::string name;  // as the patch calls the function
  // What it was looked up by; not known of one that a patch file has named by its place.
  std::optional<unsigned long> position;
  std::uintptr_t address = 0;
  std::uint64_t size = 0;
  std::vector<arch::CodeRange> parts;    // .cold and the like
  std::vector<Func*> stack;              // newest first
  entries::Seat* seat = nullptr;         // what sits at its entry, a hook around the versions too
  arch::NamedCode* copy_name = nullptr;  // "parse@original", of the displaced instructions
  SiteGate* gate = nullptr;              // of the transition under way, if it concerns this site

  Func* top() const { return stack.empty() ? nullptr : stack.front(); }
};

// Where a call of the function ends up in that version; null: the original.
std::uintptr_t code_of(const Site& site, const Func* version);

// --- finding functions ------------------------------------------------------------------------------

// The symbols of one loaded object, read once for all functions of a patch in it.
struct ObjectSymbols {
  elf::NamedObject object;
  elf::Symbols symbols;
};
Result<ObjectSymbols> symbols_of(const elf::NamedObject& object);

// The site of a function, known or new; a new one has been analysed and prepared, nothing is changed.
// EINVAL: not found, in the kernel's words; ENOTSUP or EBUSY: its entry cannot be redirected.
Result<Site*> site_of(const ObjectSymbols& in, const std::string& name, unsigned long position);
// One that was found before in the object that lies there, without its symbols; null: it was not. Sites are
// forgotten with their object.
Site* known_site(const elf::Range& extent, const std::string& name, unsigned long position);
Site* known_site(std::uintptr_t address);
// The same of one whose place is known; `parts`: its .cold and the like; `verified`: its bytes were
// compared with the file's.
Result<Site*> site_at(const ObjectSymbols& in, const std::string& name, std::uintptr_t address,
                      std::uint64_t size, std::vector<arch::CodeRange> parts, bool verified);
// The code of the function that begins at an address: itself and its parts. Without a symbol that says
// how long it is, the whole segment. Empty: there is no code.
std::vector<arch::CodeRange> code_at(const ObjectSymbols& in, std::uintptr_t address);

// --- what sits at the entries ------------------------------------------------------------------------

// What a site shall lead to.
struct Lead {
  Site* site;
  // With `gated`: the versions on the two sides; else `patched` alone counts. Null: the original.
  Func* unpatched = nullptr;
  Func* patched = nullptr;
  bool gated = false;
};
// Brings all of them into place, or none. `patient_ms`: how long a proof may take that no thread
// stands in a prologue. `foreseen`: what the census will ask, but for the gates made here, which are
// added; threads that the proof looks at are looked at for that too, under that number. `traps_open`: no
// other thread blocks SIGTRAP, which was just seen.
Status lead(std::span<const Lead> leads, std::uint32_t generation, int patient_ms,
            threads::RangeSet* foreseen = nullptr, std::uint64_t foreseen_number = 0,
            bool traps_open = false);

// Adds what counts as old code wherever a transition goes: gates, copies, what is to be freed (F3).
void add_pool_code(threads::RangeSet& ranges);
// Adds the code of one version of the site's function; null: the original.
void add_version(threads::RangeSet& ranges, const Site& site, const Func* version);

// Gates that no entry leads to any more: who is told by settle() that they are stale goes back to the
// choice (entries/seat.hpp). Before gate::end().
void retire_gates();
// Frees what no thread can be in any more. Cheap if there is nothing. False: something is left, and
// shall be tried again (Engine::uncollected says so too).
bool collect();
// Leaves that to the thread that goes on trying, unless much has come together. False: so it is.
bool collect_later();
// Prepared entries are redirected by a short jump, which needs no int3, but costs two jumps more. Makes
// them one jump, where that can be done now. False: some are left.
bool straighten();
bool has_short_jumps();
// Forgets the sites in an object that is gone or going; their entries are not written to. The caller
// has put the entries back if the memory is still there. `ways_in`: code from which a thread may still
// come to one of the entries, or to what was displaced there.
void forget_sites(const elf::Range& extent, threads::RangeSet& ways_in);
// Of functions that were patched once, of a library that has gone since, with nobody told: patches that name it
// alone see to that. Another one lies there now.
void forget_stale_sites(const elf::NamedObject& object);
// All sites that have versions.
std::vector<Site*> patched_sites();

}  // namespace molt::livepatch
