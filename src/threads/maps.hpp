// maps.hpp - which memory lies around an address, asked of the kernel through one descriptor that
// stays open: that goes on working after the process has given up its dumpability.
//
// The census thread's alone. PROCMAP_QUERY (Linux 6.11) answers for one address in a microsecond;
// without it the text of /proc/self/maps is read, once for all questions until forget().
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace molt::threads {

struct Extent {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;  // 0: nothing is there

  bool contains(std::uintptr_t address) const { return address >= begin && address < end; }
  explicit operator bool() const { return end != 0; }
};

class Maps {
 public:
  [[nodiscard]] Status open();
  // The readable and writable memory around an address. Mappings that touch count as one: a stack
  // may have been cut by mlock or madvise.
  Extent writable_around(std::uintptr_t address) { return writable(address, true); }
  // The same, from where the address's own mapping ends downwards.
  Extent writable_below(std::uintptr_t address) { return writable(address, false); }
  // What was read as text is no longer believed.
  void forget() { text_is_fresh_ = false; }
  // For tests: as on a kernel that answers no questions about one address.
  void query(bool on) { can_query_ = on; }

 private:
  Extent writable(std::uintptr_t address, bool upwards);
  Extent query(std::uintptr_t address);
  void read_text();

  Fd fd_;
  bool can_query_ = true;
  bool text_is_fresh_ = false;
  std::vector<Extent> extents_;  // ascending; writable ones that touch are merged
};

}  // namespace molt::threads
