// maps.hpp - the process's mappings, as /proc/self/maps tells them.
#pragma once

#include <vector>

#include "arch/x86_64/code.hpp"
#include "base/result.hpp"

namespace molt::arch {

struct Mapping {
  CodeRange range;
  bool readable = false, writable = false, executable = false, shared = false;
  bool heap = false, stack = false;
  char name[48] = {};  // the end of its path
};

// In order of address. A snapshot.
Result<std::vector<Mapping>> read_maps();

}  // namespace molt::arch
