// pages.hpp - which pages of a mapping are there, and which were written since they were searched.
//
// Order      for_each() hands out pages of which it has noted, before, that they are unwritten: a
//            store after that note makes them come again. The note and the look are one step in the
//            kernel (PAGEMAP_SCAN with PM_SCAN_WP_MATCHING), or the note comes once, before the
//            first look (soft_dirty: the set then only grows).
//            Round 1, with which most searches end, notes nothing: what it hands out comes again in
//            round 2, if there is one, together with what is written until then.
// Costs      write_protect: the program's first store to each page faults once (about 0.5 us), huge
//            pages that are stored to are split. soft_dirty: the same, and the lock of the address
//            space is held while all page tables are walked. rescan: nothing, but all is read again.
// Refuses    Memory that has a userfaultfd of the program's own is searched again in every round.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "audit/audit.hpp"
#include "base/fd.hpp"
#include "base/own_fd.hpp"
#include "base/result.hpp"

namespace molt::audit {

class Pages {
 public:
  // Chooses the method. Falls back from what was asked for only if that is `automatic`.
  [[nodiscard]] Status open(const Options& options);

  Method method() const { return method_; }

  // Calls f(Range) -> bool for runs of pages in `part` of the mapping `whole`, which are present or
  // swapped out; f's false stops. `round` 0: all of them, else those that may have been written
  // since. `anonymous`: only pages that are no longer those of a file.
  // `round` everything: all of them, and nothing is noted.
  static constexpr unsigned everything = ~0u;
  template <class F>
  bool for_each(Range whole, Range part, bool anonymous, unsigned round, F&& f) {
    const bool is_protected =
        method_ == Method::write_protect && round != everything && protect(whole);
    const bool again = round != 0 && round != everything;
    const Wanted wanted{anonymous, again && method_ == Method::soft_dirty, is_protected,
                        is_protected && round != 1};
    std::uintptr_t at = part.begin;
    while (at < part.end) {
      at = collect(at, part.end, wanted);
      for (std::size_t i = 0; i < count_; ++i) {
        if (!f(runs_[i])) return false;
      }
    }
    return true;
  }

 private:
  static constexpr std::size_t runs_max = 128;

  struct Wanted {
    bool anonymous;    // only pages that are no longer a file's
    bool soft_dirty;   // only those with that bit
    bool unprotected;  // only those that are not write-protected, in a mapping that protect() took
    bool protect;      // and write-protects them
  };
  // Fills runs_ and returns where to go on.
  std::uintptr_t collect(std::uintptr_t begin, std::uintptr_t end, const Wanted& wanted);
  static constexpr std::uintptr_t walk_bytes = std::uintptr_t{64} << 20;
  std::uintptr_t walk_ = walk_bytes;
  std::uintptr_t collect_by_scan(std::uintptr_t begin, std::uintptr_t end, const Wanted& wanted);
  std::uintptr_t collect_by_entries(std::uintptr_t begin, std::uintptr_t end, const Wanted& wanted);
  std::uintptr_t collect_by_mincore(std::uintptr_t begin, std::uintptr_t end);
  void add(Range run);
  bool can_scan() const;
  bool open_write_protection();
  bool clear_soft_dirty() const;
  // Whether writes to this mapping are noted.
  bool protect(Range whole);
  std::uint64_t entry(std::uintptr_t address) const;

  Method method_ = Method::rescan;
  bool scans_ = false;
  bool swaps_ = false;  // there are pages that mincore() does not know
  OwnFd pagemap_;
  Fd faults_;
  std::vector<Range> protected_;
  std::vector<Range> refused_;
  Range runs_[runs_max];
  std::size_t count_ = 0;
};

}  // namespace molt::audit
