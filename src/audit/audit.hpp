// audit.hpp - which words of the process's memory are addresses in a module.
//
// Roles      One thread asks, before the module's text is freed or on a user's request; one audit at
//            a time in a process, later ones wait. All other threads run on, and write.
// State      None that outlives the call, but for a buffer of 64 KiB.
// Invariants A1 Only pages that are there are read, through the kernel: nothing is faulted in, and
//               memory that is unmapped or protected meanwhile is no error.
//            A2 A page is marked as not written before it is read (write_protect, soft_dirty): a
//               word that is stored behind the search's back makes its page be searched again.
//            A3 No address of the module lies in memory of the audit that it would search itself:
//               findings keep offsets.
// Order      pages.hpp.
// Progress   Bounded by the deadline and by rounds_max. Never blocks another thread: page tables are
//            walked, and memory is read, in pieces.
// Death      fork: the child does not have the auditing thread and may audit at once.
// Refuses    ETIMEDOUT, ECANCELED; EACCES where /proc/self/maps cannot be read.
// Checked by tests/audit (planted pointers of every kind, moving ones, MOLT_MUTATE_AUDIT_NO_RESCAN).
//
// What is searched: every aligned 8-byte word of memory that the process has written or shares for
// writing: heaps, data and bss of every object (RELRO too), thread-local storage, descriptors of
// threads, anonymous and private mappings, shared writable ones as far as this process has touched
// them. And what only the kernel knows: signal handlers, timers. Live stacks are searched on request
// only: whether a thread will return into the module is for the residency proof to say, and stacks
// are full of words that nobody will read. Suspended fibers' stacks are ordinary memory.
//
// What does not count, and why it cannot hide a pointer of the program's:
//   - the module's own segments, and mappings that are wholly the runtime's (base/own_memory.hpp);
//   - the module's link map and its entries in the loader's tables, which go with dlclose();
//   - entries of atexit() and pthread_atfork() with the module's __dso_handle, likewise;
//   - blocks on the heap that only the module itself refers to (shown, but they do not bar): what
//     its static containers hold, and what it lost. They are freed by its destructors, in dlclose(),
//     or never (owners.hpp);
//   - blocks that glibc's malloc has free, told by its own marks (heap.hpp);
//   - destructors of thread-specific keys that were deleted;
//   - what glibc keeps of threads that ended: their stacks, storage, descriptors;
//   - what the dynamic loader's own variables hold (shown, but it does not bar);
//   - addresses of its headers, dynamic symbols and their names, relocations, dynamic table, _init
//     and linkage table, and of what its pages have beyond its segments (shown, but they do not bar):
//     the loader has many, and leaves them behind in memory that is used again;
//   - what is in the buffer of a short std::string: characters, and what was there before;
//   - on the heap, addresses of unnamed data whose low two bytes may be two bools (shown, but they do
//     not bar): 1 in 16384 of such addresses is let through;
//   - the address of the module's first byte, its ELF header: tables of mappings have it, nothing
//     calls it.
// Not found: addresses that are not stored as such (mangled as in a jmp_buf, compressed, unaligned),
// memory without read permission, shared memory that only other processes have touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/futex.hpp"
#include "base/result.hpp"
#include "elf/loaded.hpp"

namespace molt::audit {

using elf::Range;

// How pages are found that were written since they were searched.
enum class Method {
  automatic,
  write_protect,  // PAGEMAP_SCAN over userfaultfd's asynchronous write protection, Linux 6.7
  soft_dirty,     // /proc/self/clear_refs and pagemap, where the kernel has soft-dirty bits
  rescan,         // all of it again
};
const char* to_text(Method method);

struct Target {
  std::vector<Range> segments;  // all its pages, ascending; at least one
  std::vector<Range> text;      // the executable ones of these
  std::vector<Range> data;      // the writable ones
  Range sealed;                 // of these, read-only since the loader was done; may be empty
  std::vector<Range> tables;    // what only the dynamic loader looks at
  std::uintptr_t bias = 0;      // what the loader added to addresses in the file
  std::string file;             // for symbols; may be unreadable
  const void* link_map = nullptr;
  // Memory of the caller's that names the module rightly: its record of it.
  std::vector<Range> known;
};

// For tests: which blocks were searched, as they are.
using Observer = std::function<void(Range)>;

struct Options {
  Deadline deadline;
  std::function<bool()> cancelled;  // may be empty
  bool stacks = false;              // search live stacks too
  Method method = Method::automatic;
  bool old_pagemap = false;  // as before Linux 6.7
  bool no_pagemap = false;   // as after a change of user
  Observer observer;         // may be empty
};

enum class Looks {
  callback,        // a function's first byte
  return_address,  // behind a call in mid-function: a suspended fiber, or a word nobody reads
  code,            // elsewhere in the text
  vtable,
  data,
};
const char* to_text(Looks looks);

enum class Place { object, heap, memory, thread_local_storage, thread, stack, signal, timer };
const char* to_text(Place place);

struct Finding {
  Place place = Place::memory;
  Looks looks = Looks::data;
  std::uintptr_t address = 0;  // of the word; 0: it is the kernel's
  std::string where;           // "libevent.so.2: g_timers+0x18", "[heap] block of 48 bytes, +16"
  Range block;                 // on the heap: its block; empty if that is not known
  bool to_data = false;        // the target is in the module's writable data
  std::string owner;           // who refers to that block; "" if it is not known
  std::string target;          // "on_timer+0x0"
  bool bars = true;            // false: shown, but nobody will follow it, or not for this to judge
  std::string text() const;  // "[heap] 0x55d0c8 (block of 48 bytes, +16) -> on_timer+0 (callback)"
};

struct Report {
  std::vector<Finding> findings;  // at most findings_max, by address
  std::size_t more = 0;           // words beyond these, not looked at
  std::size_t dismissed = 0;      // words that do not count, see above
  std::uint64_t bytes = 0;        // searched in all rounds
  std::uint64_t resident = 0;     // searched in the first
  unsigned rounds = 0;
  Method method = Method::rescan;
  // The last round found nothing that the one before had not, and what was found is still there; two
  // rounds, where some was not. False: the program moves its pointers faster than that, and the
  // findings are what was seen last. No search without stopping the program can do better against
  // one that moves a pointer in counter-phase with it.
  bool stable = false;
  std::int64_t us = 0;

  std::size_t barring() const;
};
inline constexpr std::size_t findings_max = 256;
inline constexpr unsigned rounds_max = 8;

[[nodiscard]] Result<Report> audit(const Target& target, const Options& options);

}  // namespace molt::audit
