// wrap.hpp - the calls of a function, seen before and after it: what leads from a redirected entry to
// the callbacks and on to the function itself.
//
//     entry:  e9 -> stub                    (redirect.hpp)
//     stub:   pushq record(%rip); jmp *wrapper
//     wrapper (wrap_enter.cpp), as the function that was called, in its caller's place:
//             1 keep the arguments in a molt_call
//             2 record->before(record, call), if there are callbacks before it
//             3 pass    give the registers back, jump to the original: it returns to the caller
//               watch   call the original with the same arguments, keep its result,
//                       record->after(record, call), return what is in the call then
//               answer  return the call's result; the original is not entered
//
// Roles      Every thread that calls the function executes it; the owner of the record writes it before
//            a redirect leads to the stub.
// State      The stub's bytes never change. One record for each stub.
// Invariants W1 No return address that somebody else put on a stack is changed (P2, and unwinders):
//               to see a result the wrapper calls the original itself, as any wrapper function would.
//            W2 The original gets every argument register as the caller set it, with Kind::floats %al of
//               variadic functions too, and `stack_words` words of arguments from the stack. What it
//               leaves in %rax, %rdx and %xmm0 reaches the caller.
//            W3 Kind::careful: every other register, vector ones as far as XCR0 says that they exist,
//               is what the original left. For functions whose callers may have been compiled
//               together with them (-fipa-ra): what is not exported by a shared library.
//            W4 The frame can be unwound at every instruction: exceptions, cancellation and debuggers
//               pass through; callbacks of `after` are then not called.
//            W5 Everything but the stub lies in the runtime's text, which is never unmapped: a thread
//               that sleeps in the original for a year has no return address into anything that goes.
//            W6 WrapRecord::original may change at any moment, and is read by the instruction that jumps
//               there (entries/seat.hpp, S2). With Kind::careful there is no register for that: there
//               it is an address for good, of code that jumps to where another word says.
// Order      A chain's pointer is read without a barrier, as any hook's caller does; what is called then
//            reads it again and validates it (molt.h).
// Progress   Kind::integers: 15 moves and what `before` does.
// Death      Signals may arrive at every instruction; a handler that comes here nests. fork: a child has
//            the stubs.
// Refuses    Nothing. What arguments a function has is said by whoever asks (src/interpose).
// Checked by tests/arch/gate_test.cpp (Wrap): all registers against a caller in assembly; unwinding;
//            with mutations.
#pragma once

#include <molt/call.h>
#include <molt/molt.h>

#include <cstdint>
#include <span>

#include "arch/x86_64/code.hpp"

namespace molt::arch {

enum class Passage : std::uint32_t { pass = 0, watch = 1, answer = 2 };

// One wrapped function. Lies still, for ever. The assembly knows the offsets.
struct WrapRecord {
  // Called with signals as the caller has them, on its stack, with %rsp 16-byte aligned. Keep errno
  // unless the answer is Passage::answer.
  Passage (*before)(WrapRecord*, molt_call*) = nullptr;
  void (*after)(WrapRecord*, molt_call*) = nullptr;
  CodeAddress original = 0;       // W6
  std::uint64_t stack_words = 0;  // of arguments beyond the registers
  std::uint64_t gives_float = 0;  // its result is in a vector register
  // Only their chains are looked at here: a side whose chain is empty is not called.
  molt_hook before_hook = {};
  molt_hook after_hook = {};
};

enum class WrapKind : std::uint8_t {
  integers,  // arguments in integer registers and on the stack only
  floats,    // in vector registers too; float and double, one to each
  careful,   // W3
};

// gate_setup() has been called: it measures the vector state.
inline constexpr std::size_t wrap_stub_size = 32;
std::size_t write_wrap_stub(CodeAddress at, const WrapRecord& record, WrapKind kind,
                            std::span<std::byte> out);

}  // namespace molt::arch
