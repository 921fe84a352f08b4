// redirect.hpp - what sits at a patched function's entry, and the order in which it is written.
//
// Roles      One writer (the lock under which patches change). Any thread may be executing the entry,
//            before, between and behind all bytes written here.
// State      One Redirect for each patched function: absent, short (EB xx in front of it), straight
//            (E9 at the site).
// Invariants R1 At every moment, with any prefix of the writes visible, a thread that is at an
//               instruction boundary of the entry, old or new, executes whole instructions: of the old
//               code, of the new jump, or an int3 that is handled.
//            R2 Bytes are what the last operation left, or nothing is written: somebody else has them.
//            R3 commit() is all or nothing: a failure puts back, by the same protocol, what it wrote.
//            R4 While an int3 is at the site nobody enters behind it; the proof is asked for then.
// Order      Below, at each protocol; numbered writes, S is serialise_cores(). Modelled in
//            tests/models/entry_write.pml.
// Progress   Threads never wait: one that meets an int3 is sent on by its handler.
// Death      fork in the middle: the child would inherit an int3 and the handler that goes with it, so
//            it works; its own writer finishes nothing. Callers keep fork() out with their lock.
// Refuses    See Refusal; with the reason in the error.
// Checked by tests/arch/redirect_test.cpp, stress_test.cpp (with negative controls), the model.
//
// Prepared (xx is F9, or F5 behind an endbr64):
//
//     before   padding: nop x5    site: 90 90, or 66 90
//     1        padding: e9 rel32 to the landing, in any order: nobody executes it
//     2        site+1: xx        (90 f9: nop, stc; 66 f9: stc. Carry means nothing here)   S
//     3        site:   eb        the one that counts                                      S
//     after    padding: e9 ....   site: eb xx
//     undone   3, then 2, in reverse. The padding keeps its jump until release(): a thread may have
//              taken the short jump and not yet the long one. The cell then leads to the original.
//
//   A thread that has executed the first NOP and is at site+1 executes stc (or cmc) and goes on in the
//   old version. The landing is `jmp *cell`: retargeting is one aligned 8-byte store to the cell.
//
// Unprepared, and a jump that is there already (retarget, straighten, remove):
//
//     before   site: b0 b1 b2 b3 b4
//     1        site:   cc         whoever comes traps, and is sent on to where the jump will lead   S
//     proof    nobody stands in (site, site+5): asked for where the old bytes have a boundary there
//     2        site+1: j1 j2 j3 j4, in any order                                          S
//     3        site:   j0         the one that counts                                      S
//
//   A failed proof: site: b0, S.
#pragma once

#include <span>

#include "arch/x86_64/entry.hpp"
#include "arch/x86_64/pool.hpp"
#include "arch/x86_64/text.hpp"
#include "base/result.hpp"

namespace molt::arch {

// What can be said only by who knows the threads (threads/). Called by commit() on its caller's
// thread, at most once each, with the patch lock held; may block.
class Witness {
 public:
  // Before the first int3. An error keeps commit() from starting.
  virtual Status no_thread_blocks_sigtrap() = 0;
  // With int3 at all sites: no thread is at, or will return to, an address in these ranges. An error
  // makes commit() take everything back. Threads cannot newly enter the ranges, so waiting for one to
  // leave is sensible.
  virtual Status no_thread_within(std::span<const CodeRange> ranges) = 0;
  virtual ~Witness() = default;
};

enum class RedirectForm : std::uint8_t {
  absent,
  short_jump,  // site -> padding -> landing -> target: three jumps, changed without any trap
  straight,    // site -> target: one jump
};

// One entry. Plain data, owned by the caller, changed by commit() only.
struct Redirect {
  Entry entry;
  RedirectForm form = RedirectForm::absent;
  CodeAddress target = 0;  // where a call goes; 0 while absent

  // Made by prepare(), freed by release().
  CodeSlot copy;             // the displaced first instructions: the way into the original
  CodeAddress original = 0;  // what to call, or to gate to, for the original version
  std::size_t copy_size = 0;
  CodeSlot landing;
  CodeAddress* cell = nullptr;
  bool padding_written = false;  // stays so when the redirect is removed: a thread may be there

  // Old code in the pool: counts with the function itself.
  CodeRange copy_range() const { return {original, original + copy_size}; }
  // Where a thread may still be after remove: nobody, before release().
  std::array<CodeRange, 3> lingering() const {
    return {copy_range(), landing.range(), {entry.padding, entry.padding + 5}};
  }
};

// Makes the displaced copy and the landing, and checks the mapping. Nothing of the function is
// changed. On failure nothing is kept.
Status prepare(CodePool& pool, TextWriter& writer, const Entry& entry, Redirect& redirect);
// Frees what prepare() made and gives the padding back. The redirect is absent, and no thread is in
// lingering(): the caller has proof. `unmapped`: the function itself has gone from memory.
void release(CodePool& pool, TextWriter& writer, Redirect& redirect, bool unmapped = false);

enum class Change : std::uint8_t {
  install,     // absent -> short_jump where the entry is prepared, else straight
  retarget,    // to another target, form kept
  straighten,  // short_jump -> straight, same target or another; for when nothing presses
  remove,      // -> absent
};

struct Edit {
  Redirect* redirect = nullptr;
  Change change = Change::install;
  // install, retarget: within reach of the site where the form is or becomes straight (a pool's stub
  // or write_jump() slot, or near code).
  CodeAddress target = 0;
};

// Does all of them or none, each redirect at most once. Errors of the Witness are handed on. EBUSY: bytes are not what was left there (R2), nothing was written.
Status commit(TextWriter& writer, std::span<const Edit> edits, Witness& witness);

// Whether commit() of these would write an int3.
bool needs_trap(std::span<const Edit> edits);
// Whether it would ask for no_thread_within().
bool needs_proof(std::span<const Edit> edits);

// Whether the bytes at the entry are still the ones that commit() left.
bool intact(const Redirect& redirect);

}  // namespace molt::arch
