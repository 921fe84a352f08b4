// code.hpp - stretches of code of this process, and what rel32 can reach.
#pragma once

#include <cstddef>
#include <cstdint>

namespace molt::arch {

// An address of this process that holds code.
using CodeAddress = std::uintptr_t;

// [begin, end).
struct CodeRange {
  CodeAddress begin = 0;
  CodeAddress end = 0;
  bool contains(CodeAddress address) const { return address - begin < end - begin; }
  bool empty() const { return begin >= end; }
  std::size_t size() const { return end - begin; }
};

// Whether an instruction that ends at `from` can name `to` by a signed 32-bit distance.
inline bool reaches(CodeAddress from, CodeAddress to) {
  auto distance = static_cast<std::int64_t>(to - from);
  return distance == static_cast<std::int32_t>(distance);
}

}  // namespace molt::arch
