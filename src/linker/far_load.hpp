// far_load.hpp - a load of a variable that is out of its reach.
//
// Programs read a library's variables by distance, since the linker makes them a copy of their own
// (`mov stderr(%rip), %rdi`). A variable that the program has not used before has no copy. Such a load
// goes by a stub, which needs nothing but the register that is loaded:
//
//     before   [rex] 8b modrm disp32             mov variable(%rip), %reg
//     after    e9 rel32, nop                     jmp stub
//     stub     mov word(%rip), %reg              its address
//              mov (%reg), %reg                  as wide as before
//              jmp back
//
// No other register, no flags, no stack. Stores and comparisons have no register to spare.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace molt::linker {

inline constexpr std::size_t far_load_size = 32;

struct FarLoad {
  std::size_t begin = 0, end = 0;  // of the instruction, in the code
  std::uint8_t rex = 0, reg = 0;   // reg: 0 to 15
};
// The load whose distance is at `field` of the code; nothing if it is none.
[[nodiscard]] std::optional<FarLoad> far_load_at(std::span<const std::byte> code,
                                                 std::size_t field);
// Distances are between places of one mapping: of the instruction's begin, the stub, and the word with
// the variable's address.
void write_far_load(const FarLoad& load, std::span<std::byte> instruction, std::int64_t at,
                    std::span<std::byte, far_load_size> stub, std::int64_t stub_at,
                    std::int64_t word_at);

}  // namespace molt::linker
