// displace.hpp - the first instructions of a function, made to run elsewhere: the way into the old
// version while its entry holds a jump.
//
//     old entry   55               push %rbp              copy   55               push %rbp
//                 48 89 e5         mov %rsp,%rbp                  48 89 e5         mov %rsp,%rbp
//                 8b 05 rel32      mov x(%rip),%eax               8b 05 rel32'     the same x
//                 ...              <- resume                      e9 rel32         jmp resume
//
// Re-encoded: rip-relative operands, jmp, jcc, jrcxz and loop (which become a short one around a long
// jump), call. A call is `push <its own return address>; jmp`: the callee returns into the original
// function, where unwind tables know the frame. That is refused under a shadow stack.
//
// The copy is old code: a thread whose PC is in it is in the old version.
#pragma once

#include <span>

#include "arch/x86_64/entry.hpp"

namespace molt::arch {

// Enough for what any Entry displaces.
inline constexpr std::size_t displaced_copy_size = 160;

// Writes the copy that will run at `at` into `out` (at least displaced_copy_size bytes) and answers
// how many bytes it has. Starts with an endbr64 if the function does. ENOTSUP: something it refers
// to is out of reach from there.
Result<std::size_t> displace(const Entry& entry, CodeAddress at, std::span<std::byte> out);

}  // namespace molt::arch
