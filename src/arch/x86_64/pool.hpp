// pool.hpp - executable memory near the code that jumps to it.
//
// Roles      Callers hold the lock under which code is patched; no function here takes one. Any
//            thread executes what was published.
// State      Blocks of 64 KiB, each within reach of what it was reserved for: code pages, read-only
//            and executable, and one page of cells, read-write and never executable (W1 of text.hpp).
// Invariants P1 A block is never unmapped: its addresses stay ours.
//            P2 A slot that was freed is filled with int3: who jumps there by mistake is seen.
//            P3 A slot is written before anything points to it, and freed only by a caller who has
//               proven that no thread is in it and none can enter.
// Refuses    ENOMEM "no near memory", when no gap within 2 GiB is left.
// Checked by tests/arch/pool_test.cpp.
#pragma once

#include <span>
#include <vector>

#include "arch/x86_64/code.hpp"
#include "arch/x86_64/text.hpp"
#include "base/result.hpp"

namespace molt::arch {

struct CodeSlot {
  CodeAddress address = 0;
  std::uint32_t size = 0;
  explicit operator bool() const { return address != 0; }
  CodeRange range() const { return {address, address + size}; }
};

class CodePool {
 public:
  static constexpr std::size_t block_size = 64 * 1024;

  CodePool() = default;
  CodePool(const CodePool&) = delete;
  CodePool& operator=(const CodePool&) = delete;
  // For tests. The runtime's pool lives as long as the process (P1).
  ~CodePool();

  // Makes sure that a block within reach of [near.begin, near.end) exists: early, before the space
  // around it fills up.
  Status reserve(CodeRange near);
  // At least `size` bytes (rounded up to 16), all within reach of all of `near`: of the entry that
  // jumps there and of everything that the code in the slot will refer to.
  Result<CodeSlot> allocate(CodeRange near, std::size_t size);
  // Fills the slot, in which no thread can be. Other threads may come there once cores have been
  // serialised: commit() (redirect.hpp) does that before it makes anything reachable.
  Status publish(TextWriter& writer, const CodeSlot& slot, std::span<const std::byte> code);
  // The caller has proof (P3). If the int3 cannot be written the slot is lost, not reused.
  void free(TextWriter& writer, const CodeSlot& slot);
  // A 64-bit word that code in the same block can jump through; null without one left.
  CodeAddress* allocate_cell(const CodeSlot& slot);
  void free_cell(CodeAddress* cell);

  // All code pages of the pool: where trampolines are.
  std::vector<CodeRange> blocks() const;
  std::size_t used_bytes() const;

 private:
  struct Block;
  Result<Block*> make_block(CodeRange near);
  Block* block_of(CodeAddress address);
  std::vector<Block*> blocks_;
};

}  // namespace molt::arch
