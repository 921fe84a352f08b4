#include "base/memory.hpp"

#include <dlfcn.h>
#include <malloc.h>
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

constexpr std::size_t unit_bytes = 256;
constexpr std::size_t units = reserve_bytes / unit_bytes;

// A run of units; its first 16 bytes say how many.
alignas(16) char g_reserve[reserve_bytes];
bool g_taken[units];
std::atomic<std::size_t> g_taken_count{0};
std::atomic_flag g_lock = ATOMIC_FLAG_INIT;

struct Locked {
  Locked() {
    while (g_lock.test_and_set(std::memory_order_acquire)) __builtin_ia32_pause();
  }
  ~Locked() { g_lock.clear(std::memory_order_release); }
};

bool in_reserve(const void* p) {
  auto at = reinterpret_cast<std::uintptr_t>(p);
  auto from = reinterpret_cast<std::uintptr_t>(g_reserve);
  return at >= from && at < from + reserve_bytes;
}

void* from_reserve(std::size_t bytes) {
  if (bytes > reserve_bytes / 2) return nullptr;
  std::size_t wanted = (bytes + 16 + unit_bytes - 1) / unit_bytes;
  Locked locked;
  std::size_t run = 0;
  for (std::size_t i = 0; i < units; ++i) {
    run = g_taken[i] ? 0 : run + 1;
    if (run < wanted) continue;
    std::size_t first = i + 1 - wanted;
    memset(g_taken + first, 1, wanted);
    g_taken_count.fetch_add(wanted, std::memory_order_relaxed);
    char* at = g_reserve + first * unit_bytes;
    memcpy(at, &wanted, sizeof wanted);
    return at + 16;
  }
  return nullptr;
}

void give_back(void* p) {
  char* at = static_cast<char*>(p) - 16;
  std::size_t count;
  memcpy(&count, at, sizeof count);
  memset(at, 0, count * unit_bytes);
  Locked locked;
  memset(g_taken + static_cast<std::size_t>(at - g_reserve) / unit_bytes, 0, count);
  g_taken_count.fetch_sub(count, std::memory_order_relaxed);
}

// What malloc gave for so many bytes. Its answer counts only if it is the same library's as the
// memory; a program may bring a malloc without it.
std::size_t usable_bytes(void* p, std::size_t bytes) {
  static const bool is_same_library = [] {
    Dl_info memory, sizes;
    return dladdr(reinterpret_cast<void*>(&malloc), &memory) != 0 &&
           dladdr(reinterpret_cast<void*>(&malloc_usable_size), &sizes) != 0 &&
           memory.dli_fbase == sizes.dli_fbase;
  }();
  return is_same_library ? malloc_usable_size(p) : bytes;
}

}  // namespace

void* reserve_allocate(std::size_t bytes) {
  for (;;) {
    if (void* p = malloc(bytes ? bytes : 1)) {
      memset(p, 0, usable_bytes(p, bytes));
      return p;
    }
    if (void* p = from_reserve(bytes)) return p;
    // Neither: this thread waits for memory rather than end the host.
    timespec nap{0, 10'000'000};
    nanosleep(&nap, nullptr);
  }
}

void reserve_release(void* p, std::size_t bytes) {
  if (p == nullptr) return;
  if (in_reserve(p)) {
    give_back(p);
    return;
  }
  memset(p, 0, usable_bytes(p, bytes));
  asm volatile("" : : "r"(p) : "memory");  // or the compiler drops a store to what is freed
  free(p);
}

Status memory_available() {
  // What lives long may stay in the reserve; half of it is enough for an operation.
  if (g_taken_count.load(std::memory_order_relaxed) > units / 2) {
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
