#include "arch/x86_64/pool.hpp"

#include <errno.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "arch/x86_64/near.hpp"
#include "base/memory.hpp"
#include "base/own_memory.hpp"
#include "base/poison.hpp"

namespace molt::arch {
namespace {

constexpr std::size_t page_size = 4096;
constexpr std::size_t granule = 16;
constexpr std::size_t code_size = CodePool::block_size - page_size;
constexpr std::size_t granules = code_size / granule;
constexpr std::size_t cells = page_size / sizeof(CodeAddress);

}  // namespace

struct CodePool::Block {
  CodeAddress begin = 0;
  std::uint32_t used = 0;  // granules
  bool taken[granules] = {};
  bool cell_taken[cells] = {};
  CodeRange code() const { return {begin, begin + code_size}; }
  CodeAddress* cell(std::size_t index) const {
    return reinterpret_cast<CodeAddress*>(begin + code_size) + index;
  }
  // The first of `count` free granules in a row, or `granules`.
  std::size_t find(std::size_t count) const {
    std::size_t run = 0;
    for (std::size_t i = 0; i < granules; ++i) {
      run = taken[i] ? 0 : run + 1;
      if (run == count) return i + 1 - count;
    }
    return granules;
  }
};

CodePool::~CodePool() {
  for (Block* block : blocks_) {
    munmap(reinterpret_cast<void*>(block->begin), block_size);
    delete block;
  }
}

Result<CodePool::Block*> CodePool::make_block(CodeRange near) {
  if (auto memory = memory_available(); !memory) return pass(memory);
  auto place = map_near(near, block_size, block_size);
  if (!place) return pass(place);
  void* got = reinterpret_cast<void*>(*place);
  if (mprotect(reinterpret_cast<void*>(*place + code_size), page_size, PROT_READ | PROT_WRITE) !=
      0) {
    const int code = errno;
    munmap(got, block_size);
    return fail_errno(code, "cannot make a page of cells writable");
  }
  // Gates and cells name code until they are used again; who is in them is for a proof of residency
  // to say.
  note_own_memory(got, block_size);
  auto* block = new Block;
  block->begin = *place;
  blocks_.push_back(block);
  return block;
}

Status CodePool::reserve(CodeRange near) {
  for (Block* block : blocks_) {
    if (within_reach(block->code(), near)) return {};
  }
  auto made = make_block(near);
  if (!made) return pass(made);
  return {};
}

Result<CodeSlot> CodePool::allocate(CodeRange near, std::size_t size) {
  std::size_t count = (size + granule - 1) / granule;
  if (count == 0 || count > granules) return fail(EINVAL, "a slot of %zu bytes", size);
  Block* block = nullptr;
  std::size_t at = granules;
  for (Block* one : blocks_) {
    if (one->used + count <= granules && within_reach(one->code(), near) &&
        (at = one->find(count)) != granules) {
      block = one;
      break;
    }
  }
  if (block == nullptr) {
    auto made = make_block(near);
    if (!made) return pass(made);
    block = *made;
    at = 0;
  }
  std::fill_n(block->taken + at, count, true);
  block->used += static_cast<std::uint32_t>(count);
  return CodeSlot{block->begin + at * granule, static_cast<std::uint32_t>(count * granule)};
}

Status CodePool::publish(TextWriter& writer, const CodeSlot& slot,
                         std::span<const std::byte> code) {
  if (code.size() > slot.size) return fail(EINVAL, "code larger than its slot");
  return writer.write(slot.address, code);
}

CodePool::Block* CodePool::block_of(CodeAddress address) {
  for (Block* block : blocks_) {
    if (address - block->begin < block_size) return block;
  }
  return nullptr;
}

void CodePool::free(TextWriter& writer, const CodeSlot& slot) {
  Block* block = block_of(slot.address);
  if (block == nullptr || !operable()) return;
  Bytes traps;
  if (!traps.try_resize(slot.size)) return;
  std::memset(traps.data(), 0xcc, slot.size);
  if (!writer.write(slot.address, traps)) return;
  std::size_t at = (slot.address - block->begin) / granule, count = slot.size / granule;
  std::fill_n(block->taken + at, count, false);
  block->used -= static_cast<std::uint32_t>(count);
}

CodeAddress* CodePool::allocate_cell(const CodeSlot& slot) {
  Block* block = block_of(slot.address);
  if (block == nullptr) return nullptr;
  for (std::size_t i = 0; i < cells; ++i) {
    if (!block->cell_taken[i]) {
      block->cell_taken[i] = true;
      return block->cell(i);
    }
  }
  return nullptr;
}

void CodePool::free_cell(CodeAddress* cell) {
  Block* block = block_of(reinterpret_cast<CodeAddress>(cell));
  if (block == nullptr || !operable()) return;
  *cell = 0;
  block->cell_taken[cell - block->cell(0)] = false;
}

std::vector<CodeRange> CodePool::blocks() const {
  std::vector<CodeRange> ranges;
  for (const Block* block : blocks_) ranges.push_back(block->code());
  return ranges;
}

std::size_t CodePool::used_bytes() const {
  std::size_t used = 0;
  for (const Block* block : blocks_) used += block->used * granule;
  return used;
}

}  // namespace molt::arch
