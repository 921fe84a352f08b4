#include "threads/ranges.hpp"

#include <algorithm>

namespace molt::threads {

void RangeSet::add(std::uintptr_t begin, std::uintptr_t end) {
  if (begin >= end) return;
  // The new one swallows what it overlaps or touches; nothing is undone if memory ends here, as
  // operator new then waits.
  auto first = std::find_if(bounds_.begin(), bounds_.end(),
                            [&](const Bounds& b) { return (b.end ^ mask) >= begin; });
  auto last = first;
  for (; last != bounds_.end() && (last->begin ^ mask) <= end; ++last) {
    begin = std::min(begin, last->begin ^ mask);
    end = std::max(end, last->end ^ mask);
  }
  const Bounds merged{begin ^ mask, end ^ mask};
  if (first == last) {
    bounds_.insert(first, merged);
  } else {
    *first = merged;
    bounds_.erase(first + 1, last);
  }
}

void RangeSet::add(const RangeSet& other) {
  for (const Bounds& b : other.bounds_) add(b.begin ^ mask, b.end ^ mask);
  for (std::uintptr_t entry : other.entries_) {
    entries_.insert(std::lower_bound(entries_.begin(), entries_.end(), entry), entry);
  }
}

bool RangeSet::contains(std::uintptr_t address) const {
  // The last range that begins at or below it. Masking keeps the order: all bounds have the same
  // high bits.
  const std::uintptr_t masked = address ^ mask;
  auto above = std::upper_bound(bounds_.begin(), bounds_.end(), masked,
                                [](std::uintptr_t a, const Bounds& b) { return a < b.begin; });
  return above != bounds_.begin() && masked < std::prev(above)->end;
}

bool RangeSet::includes(const RangeSet& other) const {
  return entries_.empty() &&
         std::all_of(other.bounds_.begin(), other.bounds_.end(), [&](const Bounds& b) {
           return std::any_of(bounds_.begin(), bounds_.end(), [&](const Bounds& mine) {
             return mine.begin <= b.begin && b.end <= mine.end;
           });
         });
}

namespace {

// call rel32, or call r/m64 (ff /2) in any of its lengths, right before `address`.
bool follows_call(const unsigned char* address) {
  if (address[-5] == 0xe8) return true;
  for (int length : {2, 3, 4, 6, 7}) {
    if (address[-length] == 0xff && ((address[1 - length] >> 3) & 7) == 2) return true;
  }
  return false;
}

}  // namespace

void RangeSet::note_entry(std::uintptr_t entry) {
  constexpr std::uintptr_t longest_call = 7;
  if (!contains(entry) || !contains(entry - longest_call)) return;
  if (follows_call(reinterpret_cast<const unsigned char*>(entry))) return;
  const std::uintptr_t masked = entry ^ mask;
  entries_.insert(std::lower_bound(entries_.begin(), entries_.end(), masked), masked);
}

bool RangeSet::is_entry(std::uintptr_t address) const {
  return std::binary_search(entries_.begin(), entries_.end(), address ^ mask);
}

}  // namespace molt::threads
