#include "base/memory.hpp"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>

namespace molt {
namespace {

// What one operation may need at most beside a module's own file: lists, names, chains, JSON of a
// 64 KiB message.
constexpr std::size_t reserve_bytes = std::size_t{1} << 20;

alignas(16) char g_reserve[reserve_bytes];
std::atomic<std::size_t> g_used{0};    // bump pointer
std::atomic<std::size_t> g_blocks{0};  // blocks not freed yet; at 0 the reserve is whole again

bool in_reserve(const void* p) {
  auto at = reinterpret_cast<std::uintptr_t>(p);
  auto from = reinterpret_cast<std::uintptr_t>(g_reserve);
  return at >= from && at < from + reserve_bytes;
}

void* from_reserve(std::size_t bytes) {
  bytes = (bytes + 15) & ~std::size_t{15};
  g_blocks.fetch_add(1, std::memory_order_acq_rel);
  std::size_t at = g_used.fetch_add(bytes, std::memory_order_acq_rel);
  if (at + bytes <= reserve_bytes) return g_reserve + at;
  g_used.fetch_sub(bytes, std::memory_order_acq_rel);
  g_blocks.fetch_sub(1, std::memory_order_acq_rel);
  return nullptr;
}

}  // namespace

void* reserve_allocate(std::size_t bytes) {
  for (;;) {
    if (void* p = malloc(bytes ? bytes : 1)) return p;
    if (void* p = from_reserve(bytes)) return p;
    // Neither: this thread waits for memory rather than end the host.
    timespec nap{0, 10'000'000};
    nanosleep(&nap, nullptr);
  }
}

void reserve_release(void* p) {
  if (!in_reserve(p)) {
    free(p);
    return;
  }
  if (g_blocks.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    g_used.store(0, std::memory_order_release);
  }
}

Status memory_available() {
  if (g_blocks.load(std::memory_order_acquire) != 0) {
    return fail(ENOMEM, "the process has no memory left; nothing was changed");
  }
  // Whether malloc has what the operation is likely to want; not a promise, the reserve is.
  void* probe = malloc(reserve_bytes / 8);
  if (probe == nullptr) return fail(ENOMEM, "the process has no memory left; nothing was changed");
  free(probe);
  return {};
}

Bytes::~Bytes() { free(data_); }

bool Bytes::try_resize(std::size_t size) {
  if (size > capacity_) {
    std::size_t wanted = size > 2 * capacity_ ? size : 2 * capacity_;
    void* larger = realloc(data_, wanted);
    if (larger == nullptr) return false;
    data_ = static_cast<std::byte*>(larger);
    capacity_ = wanted;
  }
  size_ = size;
  return true;
}

}  // namespace molt
