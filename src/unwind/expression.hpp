// expression.hpp - what a DWARF expression of call frame information comes to, as far as it is made of
// what compilers and glibc write there. Anything else, and any register that is not known, makes it
// unknown. Inside unwind/. The expressions themselves are decoded by libdw.
#pragma once

#include <elfutils/libdw.h>

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>

namespace molt::unwind {

// By DWARF number: rax rdx rcx rbx rsi rdi rbp rsp r8 .. r15, return address.
inline constexpr unsigned dwarf_rsp = 7;
inline constexpr unsigned dwarf_rip = 16;
using Registers = std::array<std::optional<std::uint64_t>, 17>;

using ReadWord = std::function<std::optional<std::uint64_t>(std::uint64_t address)>;

struct Value {
  std::uint64_t value;
  bool is_address;  // of where the thing lies; otherwise it is the thing
};
std::optional<Value> evaluate(std::span<const Dwarf_Op> expression, const Registers& registers,
                              std::optional<std::uint64_t> cfa, const ReadWord& read);

}  // namespace molt::unwind
