// heap.hpp - the block of glibc's malloc that an address lies in, and whether it is free.
//
// Chunks lie side by side: size and flags, then the block. The walk goes from the first chunk of a
// heap up, so it names blocks; that a block is free is never concluded from the walk alone, but from
// marks that only malloc leaves: the next chunk's PREV_INUSE bit and copy of the size (bins), the
// random key that is written into blocks of the thread caches, the mangled link in those of the
// fastbins. Other allocators have neither: their blocks are memory like any other.
#pragma once

#include <cstdint>
#include <optional>

#include "audit/copy.hpp"
#include "elf/loaded.hpp"

namespace molt::audit {

using elf::Range;

struct Block {
  Range range;  // as malloc returned it, by its usable size
  bool is_free = false;
};

class Heap {
 public:
  explicit Heap(Copy& copy);

  // Whether malloc is glibc's.
  bool known() const { return key_ != 0; }

  // Whether a heap of an arena other than the main one may begin there.
  static bool may_begin(std::uintptr_t address) {
    return address % (std::uintptr_t{64} << 20) == 0;
  }

  // The block at an address of `mapping`, which is malloc's `main` heap ("[heap]") or anonymous
  // memory that may be one. Ask by ascending address: the walk goes on where it was.
  std::optional<Block> block_at(Range mapping, bool main, std::uintptr_t address);

 private:
  struct Chunk {
    std::uintptr_t at = 0;
    std::uint64_t size = 0;
  };
  std::optional<Chunk> chunk(std::uintptr_t at, std::uintptr_t end);
  std::optional<std::uint64_t> word(std::uintptr_t at);
  std::optional<Block> walk(std::uintptr_t address);
  bool is_free(const Chunk& chunk);
  // The first chunk of a heap; 0: it is none.
  std::uintptr_t first_chunk(Range mapping, bool main);
  std::optional<Block> mapped_block(Range mapping, std::uintptr_t address);

  Copy& copy_;
  std::uint64_t key_ = 0;
  // What is walked, and how far.
  Range mapping_;
  std::uintptr_t given_end_ = 0;  // of it, when it was listed
  std::uintptr_t at_ = 0;
  // What word() has read ahead.
  std::size_t ahead_words_ = 0;
  std::uintptr_t ahead_at_ = 0;
};

}  // namespace molt::audit
