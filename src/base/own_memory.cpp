#include "base/own_memory.hpp"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

namespace molt {
namespace {

// 64 KiB each: 512 MiB of chains. More are simply searched, and may show pointers.
constexpr std::size_t most = 8192;
OwnMemory g_list[most];
std::atomic<std::size_t> g_reserved{0};
// Below this all are written.
std::atomic<std::size_t> g_count{0};

}  // namespace

void note_own_memory(const void* begin, std::size_t bytes) {
  const auto at = reinterpret_cast<std::uintptr_t>(begin);
  const std::size_t mine = g_reserved.fetch_add(1, std::memory_order_relaxed);
  if (mine >= most) return;
  g_list[mine] = {at, at + bytes};
  // In order, so that a reader never sees one that is not written; pairs with own_memory_count().
  std::size_t before = mine;
  while (!g_count.compare_exchange_weak(before, mine + 1, std::memory_order_release,
                                        std::memory_order_relaxed)) {
    before = mine;
    __builtin_ia32_pause();
  }
}

void* map_own_memory(std::size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  note_own_memory(memory, bytes);
  return memory;
}

namespace {

// More than the runtime ever has. One that finds no room is taken for the program's.
constexpr std::size_t threads_most = 256;
std::atomic<int> g_threads[threads_most];

void swap_thread(int from, int to) {
  for (std::atomic<int>& slot : g_threads) {
    int expected = from;
    if (slot.compare_exchange_strong(expected, to, std::memory_order_relaxed)) return;
  }
}

}  // namespace

void note_own_thread(bool begins) {
  const int tid = static_cast<int>(syscall(SYS_gettid));
  begins ? swap_thread(0, tid) : swap_thread(tid, 0);
}

bool is_own_thread(int tid) {
  for (const std::atomic<int>& slot : g_threads) {
    if (slot.load(std::memory_order_relaxed) == tid) return true;
  }
  return false;
}

std::size_t own_memory_count() { return g_count.load(std::memory_order_acquire); }
OwnMemory own_memory(std::size_t index) { return g_list[index]; }

}  // namespace molt
