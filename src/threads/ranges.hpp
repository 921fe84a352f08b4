// ranges.hpp - a set of code ranges that stack words are compared with.
//
// The set never holds an address as such: each bound is kept masked, so that the memory of a set,
// or a stale copy of it on a stack, is not itself taken for a return address (residency.hpp, Y6).
// One writer until it is given to a proof; immutable from then on, and readable by any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace molt::threads {

class RangeSet {
 public:
  // [begin, end); empty and reversed ones are ignored. Overlapping ones are merged. Allocates as the
  // runtime does (base/memory.hpp): never fails.
  void add(std::uintptr_t begin, std::uintptr_t end);

  // All of another set, its entries too.
  void add(const RangeSet& other);

  bool contains(std::uintptr_t address) const;
  // Whether whoever is out of this set is out of the other one.
  bool includes(const RangeSet& other) const;

  // Words on a stack that equal `entry` are no return addresses: it is a function's first byte, and
  // the instruction before it is no call. Pointers to callbacks lie about on the stacks of whoever
  // calls them. A thread that a signal has interrupted right there is found by its signal frame.
  void note_entry(std::uintptr_t entry);
  bool is_entry(std::uintptr_t address) const;
  bool empty() const { return bounds_.empty(); }
  std::size_t size() const { return bounds_.size(); }

  // The i-th range, ascending. For tests and for texts: the values are plain on the caller's stack.
  std::uintptr_t begin_of(std::size_t i) const { return bounds_[i].begin ^ mask; }
  std::uintptr_t end_of(std::size_t i) const { return bounds_[i].end ^ mask; }

  // What the scan compares each word with first: lowest begin and highest end, both masked.
  std::uintptr_t masked_low() const { return bounds_.front().begin; }
  std::uintptr_t masked_high() const { return bounds_.back().end; }

  // No user-space address has these bits, so a masked bound is in no range.
  static constexpr std::uintptr_t mask = 0xa5a5'0000'0000'0000;

 private:
  struct Bounds {
    std::uintptr_t begin;
    std::uintptr_t end;
  };
  std::vector<Bounds> bounds_;           // ascending, disjoint, masked
  std::vector<std::uintptr_t> entries_;  // ascending, masked
};

}  // namespace molt::threads
