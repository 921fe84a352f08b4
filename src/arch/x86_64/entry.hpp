// entry.hpp - how the entry of a function can be redirected, or why not.
//
//     EntryQuery query;            // bytes and bounds from the symbol table and the file
//     auto entry = analyse(query);
//     if (!entry) refuse(entry.error());   // one line: what stands in the way
//
// Nothing is written and nothing outside the given bytes is read. Any thread; no locks; no memory.
//
// Invariants E1 Every byte that a redirect will ever change lies in Entry::site's bytes or in its
//               padding, and was what the file says when it was looked at.
//            E2 No branch of the function, and no address it computes, leads into (site, site+size).
//            E3 The displaced instructions are whole, and each can be re-encoded elsewhere.
// Refuses    by name: see Refusal.
// Checked by tests/arch/entry_test.cpp (compilers x flags), tests/fuzz/entry.cpp.
#pragma once

#include <array>
#include <span>

#include "arch/x86_64/code.hpp"
#include "base/result.hpp"

namespace molt::arch {

// What stands in the way; the Error of analyse() carries it in words.
enum class Refusal : std::uint8_t {
  none,
  no_size,            // the symbol says 0 bytes: where the function ends is unknown
  too_short,          // fewer than 5 bytes, and no padding around it that is provably padding
  changed,            // its bytes are not the file's: another tool (jmp, int3) owns the entry
  undecodable,        // bytes that are no instruction
  branch_into_entry,  // the function jumps to where the redirect would lie, or to its own start
  address_of_entry,   // the function computes an address inside of the redirect
  not_relocatable,    // an instruction to be displaced means something else at another place
  shared_mapping,     // its pages are shared with other processes
  not_mapped,         // its pages are not executable memory of this process
  no_near_memory,     // nothing free within 2 GiB
  traps_blocked,      // SIGTRAP is blocked somewhere: the int3 would kill
  in_use,             // a thread stands in the bytes that would be changed
};
// "branch-into-entry" and so on: for messages and JSON. Static text.
const char* refusal_name(Refusal refusal);
// The refusal that an error of this layer stands for.
Refusal refusal_of(const Error& error);

// What is known about a function. `live` and `expected` cover the same bytes:
// [address - before, address + size + after).
struct EntryQuery {
  CodeAddress address = 0;  // of the function's symbol
  std::size_t size = 0;     // of the function
  std::size_t before = 0;   // bytes in front of it that belong to no symbol, at most 64 are used
  std::size_t after = 0;    // bytes behind it that belong to no symbol, at most 64 are used
  std::span<const std::byte> live;      // as they are now in this process
  std::span<const std::byte> expected;  // as they are in the file, relocated; empty: not known,
                                        // then a jump or an int3 at the entry is refused
  // Parts of the function elsewhere (.cold): they are searched for branches into the entry too.
  struct Part {
    CodeAddress address = 0;
    std::span<const std::byte> live;
  };
  std::span<const Part> parts;
  // Whether __patchable_function_entries names it (the table holds the address of the first NOP:
  // address - 6 for =8,6). Only then does padding in front need no proof that it is padding.
  bool patchable = false;
};

enum class EntryKind : std::uint8_t {
  // Two bytes of NOP at the site, five of padding in front of the function. Redirected by single
  // bytes, safe in mid-prologue, needs neither a trap nor a look at any thread.
  prepared,
  // Five bytes of real instructions (of a short function also of the padding behind it). Needs int3
  // and a proof that nobody stands between them.
  unprepared,
  // Two bytes of real instructions, five of padding in front: a short function with no room behind.
  short_before,
};

inline constexpr std::size_t max_displaced = 20;  // 4 bytes and one longest instruction, endbr64

// A redirectable entry. Trivially copyable; says nothing about the time after it was made, which is
// why every write compares the bytes once more.
struct Entry {
  EntryKind kind = EntryKind::unprepared;
  CodeAddress function = 0;        // the symbol's address: what callers call
  CodeAddress site = 0;            // first byte that changes: behind an endbr64, if there is one
  std::uint8_t site_size = 0;      // 5, or 2 where the jump itself lies in front
  CodeAddress padding = 0;         // the five bytes in front; 0 where they are not used
  std::uint8_t displaced = 0;      // bytes of whole instructions from `site` on, >= site_size
  std::uint8_t original_size = 0;  // valid bytes in `original`
  std::array<std::byte, max_displaced> original{};  // from `site` on
  std::array<std::byte, 5> padding_original{};
  bool returns_early = false;  // what is displaced ends the function: nothing to go back to
  // Instruction boundaries inside of (site, site+5), as bits 1..4: where a thread may stand. A
  // return address there counts as standing there. 0: no proof is needed.
  std::uint8_t boundaries = 0;
  // Like boundaries, once a prepared entry shall become one jump of five bytes (straighten). All
  // ones where that cannot be.
  std::uint8_t straight_boundaries = 0;
  // Where rip-relative operands and branches of the displaced instructions lead; {0, 0}: nowhere.
  CodeRange referenced;

  // (site, site+5): what a proof is about.
  CodeRange inner() const { return {site + 1, site + site_size}; }
};
static_assert(std::is_trivially_copyable_v<Entry>);

// The error says which byte, instruction or branch stands in the way; its code is ENOTSUP, or EBUSY
// where the entry was changed by someone else.
Result<Entry> analyse(const EntryQuery& query);

}  // namespace molt::arch
