#include "audit/heap.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>

namespace molt::audit {
namespace {

constexpr std::uint64_t flags = 7;
constexpr std::uint64_t previous_in_use = 1;
constexpr std::uint64_t is_mmapped = 2;
constexpr std::uint64_t header_bytes = 16;
constexpr std::uint64_t smallest = 32;
constexpr std::uint64_t fastbin_largest = 128;
constexpr std::uint64_t thread_cache_largest = 1040;

// What glibc writes into the second word of a block that it puts into a thread's cache; 0: it does
// not. Several sizes, since a cache that is full takes no more.
std::uint64_t learn_thread_cache_key() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return 0;  // a sanitizer has a malloc of its own, and minds freed blocks being read
#endif
  std::uint64_t seen[4] = {};
  for (std::size_t i = 0; i < 4; ++i) {
    void* block = malloc(200 + 208 * i);
    if (block == nullptr) continue;
    auto address = reinterpret_cast<std::uintptr_t>(block);
    // The compiler shall not see that it is a freed block's words that are read.
    asm volatile("" : "+r"(address));
    free(block);
    seen[i] = reinterpret_cast<const volatile std::uint64_t*>(address)[1];
  }
  for (std::size_t i = 0; i < 4; ++i) {
    for (std::size_t j = i + 1; j < 4; ++j) {
      if (seen[i] == seen[j] && seen[i] >> 32 != 0) return seen[i];
    }
  }
  return 0;
}

// The same for the life of the process.
std::uint64_t thread_cache_key() {
  static std::atomic<std::uint64_t> key{0};
  std::uint64_t known = key.load(std::memory_order_relaxed);
  if (known == 0) {
    known = learn_thread_cache_key();
    key.store(known, std::memory_order_relaxed);
  }
  return known;
}

}  // namespace

Heap::Heap(Copy& copy) : copy_(copy) { key_ = thread_cache_key(); }

std::optional<std::uint64_t> Heap::word(std::uintptr_t at) {
  const std::uintptr_t ahead_end = ahead_at_ + ahead_words_ * sizeof(std::uint64_t);
  if (at < ahead_at_ || at >= ahead_end) {
    ahead_words_ = copy_.take(at, Copy::scratch_bytes) / sizeof(std::uint64_t);
    std::copy_n(copy_.words(), ahead_words_, copy_.scratch());
    ahead_at_ = at;
    if (ahead_words_ == 0) return std::nullopt;
  }
  return copy_.scratch()[(at - ahead_at_) / sizeof(std::uint64_t)];
}

std::optional<Heap::Chunk> Heap::chunk(std::uintptr_t at, std::uintptr_t end) {
  if (at % header_bytes != 0 || at + header_bytes > end) return std::nullopt;
  const auto size = word(at + 8);
  if (!size) return std::nullopt;
  const std::uint64_t bytes = *size & ~flags;
  if (bytes < smallest || bytes % header_bytes != 0 || bytes > end - at || (*size & is_mmapped)) {
    return std::nullopt;
  }
  return Chunk{at, bytes};
}

std::uintptr_t Heap::first_chunk(Range mapping, bool main) {
  if (main) return mapping.begin;
  // A heap of another arena begins at a multiple of 64 MiB with {arena, previous, size, ...}; the
  // first of an arena has the arena itself next.
  if (!may_begin(mapping.begin)) return 0;
  const auto arena = word(mapping.begin);
  if (!arena) return 0;
  constexpr std::uintptr_t info_least = 0x20, info_most = 0x40;
  constexpr std::uintptr_t arena_least = 0x800, arena_most = 0xa00;
  std::uintptr_t from = mapping.begin + info_least;
  std::uintptr_t to = mapping.begin + info_most;
  if (*arena > mapping.begin && *arena - mapping.begin <= info_most) {
    from = (*arena + arena_least) & ~(header_bytes - 1);
    to = *arena + arena_most;
  }
  for (; from <= to; from += header_bytes) {
    std::uintptr_t at = from;
    int chunks = 0;
    while (chunks < 8) {
      const auto c = chunk(at, mapping.end);
      if (!c) break;
      ++chunks;
      at += c->size;
      if (at == mapping.end) return from;
    }
    if (chunks == 8) return from;
  }
  return 0;
}

bool Heap::is_free(const Chunk& c) {
  const std::uintptr_t next = c.at + c.size;
  const auto next_previous = word(next), next_size = word(next + 8);
  // The top, also of a heap that has become smaller since its end was read.
  if (next == mapping_.end || (next % 4096 == 0 && !next_previous)) return true;
  if (next_previous && next_size && (*next_size & previous_in_use) == 0 &&
      *next_previous == c.size) {
    return true;
  }
  const std::uintptr_t block = c.at + header_bytes;
  const auto link = word(block), key = word(block + 8);
  if (!link || !key) return false;
  if (c.size <= thread_cache_largest && *key == key_) return true;
  if (c.size > fastbin_largest) return false;
  // The link of a fastbin is xored with its own address' page number, and leads to a chunk of the
  // same size, or nowhere.
  const std::uint64_t target = *link ^ (block >> 12);
  if (target == 0) return true;
  if (target % header_bytes != 0) return false;
  const auto other = copy_.word(target + 8);
  return other && (*other & ~flags) == c.size;
}

std::optional<Block> Heap::walk(std::uintptr_t address) {
  while (at_ < mapping_.end) {
    const auto c = chunk(at_, mapping_.end);
    if (!c) return std::nullopt;
    const std::uintptr_t next = c->at + c->size;
    // The last 8 bytes of a block lie in the next chunk.
    if (address < next + 8) {
      if (address < c->at + header_bytes) return std::nullopt;
      // What was read ahead may be old: a free chunk is cut up from its front.
      ahead_words_ = 0;
      const auto now = chunk(c->at, mapping_.end);
      if (!now || now->size != c->size) return std::nullopt;
      return Block{{c->at + header_bytes, next + 8}, is_free(*c)};
    }
    at_ = next;
  }
  return std::nullopt;
}

std::optional<Block> Heap::mapped_block(Range mapping, std::uintptr_t address) {
  for (std::uintptr_t at = mapping.begin; at < mapping.end;) {
    const auto size = word(at + 8);
    if (!size || (*size & flags) != is_mmapped) return std::nullopt;
    const std::uint64_t bytes = *size & ~flags;
    if (bytes % 4096 != 0 || bytes == 0 || bytes > mapping.end - at) return std::nullopt;
    if (address < at + bytes) return Block{{at + header_bytes, at + bytes}, false};
    at += bytes;
  }
  return std::nullopt;
}

std::optional<Block> Heap::block_at(Range mapping, bool main, std::uintptr_t address) {
  if (!known()) return std::nullopt;
  if (mapping.begin != mapping_.begin || mapping.end != given_end_) {
    given_end_ = mapping.end;
    mapping_ = mapping;
    // It may have grown since.
    if (main) mapping_.end = std::max(mapping.end, reinterpret_cast<std::uintptr_t>(sbrk(0)));
    at_ = first_chunk(mapping_, main);
  }
  if (at_ == 0) return main ? std::nullopt : mapped_block(mapping, address);
  // A heap changes while it is walked; a walk that has lost its way begins anew.
  constexpr int walks_max = 4;
  for (int i = 0; i < walks_max && at_ != 0; ++i) {
    if (auto found = walk(address)) return found;
    ahead_words_ = 0;
    at_ = first_chunk(mapping_, main);
  }
  return std::nullopt;
}

}  // namespace molt::audit
