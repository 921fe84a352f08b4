// signature.hpp - where the arguments of a function are, from the canonical text of its type.
#pragma once

#include <cstddef>
#include <string_view>

#include "base/result.hpp"

namespace molt::interpose {

struct Shape {
  std::size_t integers = 0;
  std::size_t floats = 0;
  std::size_t stack_words = 0;  // of arguments that the registers do not hold
  bool gives_float = false;
};

// "i32(const char*,i32,u32)". ENOTSUP: structures by value, and numbers wider than 64 bits.
[[nodiscard]] Result<Shape> shape_of(std::string_view signature);

}  // namespace molt::interpose
