// gate.hpp - the trampoline of one function during one transition: the calling thread's gate word
// decides which version runs.
//
//     start:     cmpl $take_new, %fs:offset        64 81 3c 25 offset take_new
//                je   new                          0f 84 rel32, or over a jmp *literal(%rip)
//                cmpl $take_old, %fs:offset
//                je   old
//                pushq record(%rip)
//                jmp  *slow(%rip)
//
// slow() (gate_slow.cpp) saves everything that could carry an argument or that a caller compiled with
// -fipa-ra could count on - all integer registers, x87, vector and mask registers as far as
// XCR0 says that they exist -, calls record->resolve(record), restores it all, and goes on as resolve
// says: into the old version, into the new one, or to `start` again.
//
// Roles      Every calling thread executes; the engine writes gate words, before and after it looks at
//            a thread.
// State      The stub's bytes never change once published. One record for each stub.
// Invariants G1 No register, no vector register and no stack slot above the return address changes
//               between the call and the version's first instruction. The arithmetic flags do
//               change: the ABI gives them no meaning at a call, and gcc's -fipa-ra counts
//               them as changed by every function (they are a fixed register).
//            G2 No return address is replaced or added: a version returns to its caller.
//            G3 Whether a thread takes the old version is decided by the word as it is *after* slow()
//               (verdict `again`), or because its own stack holds old code (verdict `old`): so slow()
//               and resolve() themselves are no old code, and the return address that resolve leaves on
//               the stack accuses nobody. What counts as old code is counted(): (start, end) of the stub.
//               `start` itself is not in it: a thread there has decided nothing yet.
//            G4 No stack word that slow() leaves behind points into counted(): the stub wipes the one
//               it was reached through before it goes on.
// Order      The engine's store to a word, its barrier (threads/), its look at the thread <-> the
//            thread's compare, its PC in counted(). Gate before snapshot: DESIGN 5.2.
// Progress   Fast path: one compare, one taken branch, no locked instruction. slow() takes about 3 KiB of
//            stack.
// Death      Signals may arrive at every instruction; a handler that comes here nests. Unwinding
//            through resolve() works (CFI); resolve must not throw. fork: a child has the stubs.
// Refuses    Nothing.
// Checked by tests/arch/gate_test.cpp: all registers and vectors against a caller in assembly; a signal
//            at each single instruction; with mutations.
#pragma once

#include <span>

#include "arch/x86_64/code.hpp"
#include "base/result.hpp"

namespace molt::arch {

enum class GateVerdict : std::uint32_t {
  again = 0,  // look at the word once more: it says what is to be done
  take_old = 1,
  take_new = 2,
};

// One function in one transition. Lies still, and lives until no thread can be in the stub or in
// resolve() for it. The first four are the caller's, the rest is filled in by write_gate().
struct GateRecord {
  // Called with all signals as the caller of the function has them, on its stack. May block (futex);
  // must keep errno; must not throw; may be entered again by a signal handler meanwhile. `stack`: where
  // the function's return address lies; what is below is the gate's own, saved registers among it.
  GateVerdict (*resolve)(GateRecord*, std::uintptr_t stack) = nullptr;
  CodeAddress old_code = 0;
  CodeAddress new_code = 0;
  void* cookie = nullptr;  // the caller's

  CodeAddress exits[3] = {};  // by verdict
};

struct GateWords {
  std::int32_t tls_offset = 0;  // of the thread's 32-bit gate word from %fs:0
  std::uint32_t take_old = 0;   // word == this: old version
  std::uint32_t take_new = 0;   // word == this: new version; anything else: slow()
};

inline constexpr std::size_t gate_size = 192;

// Measures the state to be saved; once, before the first gate.
void gate_setup();

// Writes the stub that will lie at `at` (16-byte aligned) and completes the record.
std::size_t write_gate(CodeAddress at, const GateWords& words, GateRecord& record,
                       std::span<std::byte> out);
// What of a stub counts as old code (G3).
inline CodeRange gate_counted(CodeAddress at) { return {at + 1, at + gate_size}; }

// A jump to anywhere that clobbers nothing: `jmp rel32`, or `jmp *literal(%rip)` where that does not
// reach. 16 bytes at most.
std::size_t write_jump(CodeAddress at, CodeAddress target, std::span<std::byte> out);
inline constexpr std::size_t jump_size = 16;
// A jump to where the word says, `jmp *cell(%rip)`; the cell is in the same block of a pool.
std::size_t write_cell_jump(CodeAddress at, const CodeAddress* cell, std::span<std::byte> out);

// The text of slow(): no old code (G3), but of interest to whoever names a PC.
CodeRange gate_slow_range();

}  // namespace molt::arch
