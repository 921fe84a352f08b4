// text.hpp - writing into code that other threads execute.
//
// Roles      One writer at a time in the process (the caller's lock); all other threads execute.
// Invariants W1 No page is ever writable and executable at once: not the target's, not ours.
//            W2 A single byte is written by one store; nothing is assumed of longer writes (the
//               kernel's copy stores them in any order). Protocols that change live instructions
//               (redirect.hpp) are built from single bytes and serialise_cores().
//            W3 Protections and the mapped file of the pages stay as they are.
// Order      A byte store, serialise_cores(), next byte store: every core that fetches the second
//            one's effect has thrown away what it had fetched before the first.
// Refuses    Shared mappings; pages that are not executable.
// Progress   Nobody is stopped or signalled; serialise_cores() interrupts running cores for about a
//            microsecond.
// Checked by tests/arch/text_test.cpp, tests/models/entry_write.pml.
//
// The way in is /proc/self/mem. Where the kernel forbids it, the page is replaced as a whole: a copy
// is changed while it is only writable, made executable, and moved over the original by one mremap.
// Threads that fetch meanwhile wait in their page fault. That breaks W3 (the page no longer belongs to
// the file), so it is the fallback. Where no memory may become executable the copy is a file in memory, mapped
// so from the start.
#pragma once

#include <span>
#include <vector>

#include "arch/x86_64/code.hpp"
#include "arch/x86_64/maps.hpp"
#include "base/own_fd.hpp"
#include "base/result.hpp"

namespace molt::arch {

// Registers the process for core serialisation; once before the first write, again in a forked child.
void text_setup();

// Every thread of the process has executed a core-serialising instruction since the call began.
// membarrier(SYNC_CORE), or else a TLB shootdown. False: neither works here, nothing may be written
// that takes more than one byte.
[[nodiscard]] bool serialise_cores();

class TextWriter {
 public:
  // Opens /proc/self/mem for the life of the writer, which is one operation: no descriptor of the
  // host's table is kept. Never fails for want of it: then pages are replaced. Code is not written to a
  // file that the host has opened under its number (own_fd.hpp).
  static TextWriter open();

  // ENOTSUP, naming the mapping, unless every page of the range is private and executable.
  Status check(CodeRange range);
  // The range must have passed check(). Bytes change in no particular order (W2). On failure none
  // has changed.
  Status write(CodeAddress address, std::span<const std::byte> bytes);
  Status write_byte(CodeAddress address, std::byte byte) { return write(address, {&byte, 1}); }
  // Whether /proc/self/mem is the way in.
  bool direct() const { return static_cast<bool>(mem_); }

  TextWriter(TextWriter&&) noexcept = default;
  TextWriter& operator=(TextWriter&&) noexcept = default;

 private:
  TextWriter() = default;
  const Mapping* find(CodeAddress address) const;
  Status replace_pages(CodeAddress address, std::span<const std::byte> bytes);

  OwnFd mem_;
  std::vector<Mapping> maps_;  // in order of address
};

}  // namespace molt::arch
