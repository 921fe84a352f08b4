// seat.hpp - one function of the program or a library whose calls lead elsewhere: what was found out
// about its entry, what sits there, and in which order.
//
//     caller -> entry: e9 -> hook's stub -> ... -> onward: jmp *cell -> version | gate | original
//
// Roles      Two owners, each under a lock of its own: livepatches say which version is in force
//            (Rank::version), hooks on functions what is around it (Rank::hook). Any thread runs
//            through.
// State      A Seat for each function that ever was patched or hooked. At its entry a jump to the
//            outermost of what is there, or nothing. What a hook goes on to, a way, is a word.
// Invariants S1 A call meets the hook first, and what the hook goes on to is the version that is in
//               force when it does: a change under a hook is a store to its ways, no change of code.
//            S2 A way is read by the very instruction that jumps: no thread carries a version's address
//               about, which every proof would have to find in its registers.
//            S3 Of one function there is one displaced copy, whoever came first, and the bytes at the
//               entry are changed for both owners by one lock's holder at a time.
//            S4 Whichever of the two goes first, the other stays as it is.
// Order      Jump to a hook's stub written after its ways lead on (provide()); cores serialised before
//            a way leads to new code.
// Progress   Callers never wait. commit() waits as its Witness does.
// Death      fork: who comes here holds the livepatches' step or the hooks' lock, and fork() waits for
//            both. An object that is unmapped: forget(); a Seat that never had a hook is freed then.
// Refuses    What arch/x86_64/entry.hpp refuses, with its words; the runtime's own functions.
// Checked by tests/livepatch, tests/interpose (stacked_test: with MOLT_MUTATE_WAYS_STAY it fails).
#pragma once

#include <span>
#include <string>
#include <vector>

#include "arch/x86_64/pool.hpp"
#include "arch/x86_64/redirect.hpp"
#include "base/result.hpp"
#include "elf/loaded_symbols.hpp"

namespace molt::entries {

struct Seat {
  std::string object;  // path; "" for the program
  std::string name;    // of who asked first
  std::uintptr_t address = 0;
  std::uint64_t size = 0;
  std::vector<arch::CodeRange> parts;  // .cold and the like
  arch::Redirect redirect;
  arch::CodeAddress hook = 0;     // a stub; 0: none
  arch::CodeAddress version = 0;  // 0: the original
  // Since the first hook: code that jumps to what is in force, and all words that say what that is.
  arch::CodeSlot onward;
  std::vector<arch::CodeAddress*> ways;
  bool is_gone = false;  // its object was unmapped

  arch::CodeAddress in_force() const { return version != 0 ? version : redirect.original; }
  // Back to the choice of a version, for who was on the way to one: not through a hook again.
  arch::CodeAddress choice() const { return onward ? onward.address : address; }
};

// What code is changed with, and where it may lie; once for each process, before anything else here.
void set_up();
// Of all trampolines. Under a lock that fork() waits for (Death).
class Pool {
 public:
  Result<arch::CodeSlot> allocate(arch::CodeRange near, std::size_t size);
  Status publish(arch::TextWriter& writer, const arch::CodeSlot& slot,
                 std::span<const std::byte> code);
  void free(arch::TextWriter& writer, const arch::CodeSlot& slot);
};
Pool pool();

// Room for a jump from anywhere in an entry.
arch::CodeRange near(const Seat& seat);

// --- finding ---------------------------------------------------------------------------------------

// Where compilers put pieces of a function: never called by its name, entered by jumps.
std::vector<arch::CodeRange> parts_of(const elf::Symbols& symbols, const std::string& name);
// The executable segment that an address is in; empty: none.
arch::CodeRange segment_of(const elf::NamedObject& object, std::uintptr_t address);

struct Place {
  std::string name;
  std::uintptr_t address = 0;
  std::uint64_t size = 0;
  std::vector<arch::CodeRange> parts;
  bool verified = false;  // its bytes were compared with the file's
};
// The seat of a function, known or new: then it has been analysed, and the displaced copy made; nothing
// of the function is changed. `dry_run`: null where it is not known.
// EINVAL: the runtime's own; ENOTSUP, EBUSY: it cannot be redirected.
Result<Seat*> seat_of(const elf::NamedObject& object, const elf::Symbols& symbols, Place place,
                      bool dry_run = false);
Result<Seat*> seat_of(const elf::NamedObject& object, const elf::Symbols& symbols,
                      const elf::FoundSymbol& function, bool dry_run = false);

// --- changing --------------------------------------------------------------------------------------

enum class Rank : std::uint8_t { version, hook };

struct Wish {
  Seat* seat = nullptr;
  Rank rank = Rank::version;
  arch::CodeAddress target = 0;  // within reach of near(); 0: nothing of this rank
};
// All of them or none; each seat at most once.
Status commit(arch::TextWriter& writer, std::span<const Wish> wishes, arch::Witness& witness);

// A word that leads on to what is in force, from now on; for ever. Makes `onward` if need be.
Status add_way(arch::TextWriter& writer, Seat& seat, arch::CodeAddress* way);

// Takes what hooks and livepatches have put into code back from a copy of it.
void undo_in_copy(std::uintptr_t address, std::span<std::byte> copy);

// One jump at the entry instead of three, where something is there and that can be had.
Status straighten(arch::TextWriter& writer, Seat& seat, arch::Witness& witness);

// Its object is unmapped or about to be, its entry has been put back or is gone. What is left of it in
// the pool, for the caller to free when it has proof; nothing, where a hook may still need it.
std::vector<arch::CodeSlot> forget(Seat* seat);

}  // namespace molt::entries
