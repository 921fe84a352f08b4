#include "audit/stacks.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <link.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "base/own_fd.hpp"

namespace molt::audit {
namespace {

// More than glibc's struct pthread has (2304 in 2.36).
constexpr std::size_t descriptor_bytes = 4096;
constexpr std::size_t static_storage_most = std::size_t{1} << 20;

// Without opendir(), which takes a large block of memory.
std::vector<int> tids(int folder) {
  std::vector<int> all;
  alignas(dirent64) char buffer[4096];
  for (long got; (got = syscall(SYS_getdents64, folder, buffer, sizeof buffer)) > 0;) {
    for (long at = 0; at < got;) {
      const auto* entry = reinterpret_cast<const dirent64*>(buffer + at);
      if (const int tid = std::atoi(entry->d_name)) all.push_back(tid);
      at += entry->d_reclen;
    }
  }
  return all;
}

std::uintptr_t own_pointer() {
  return reinterpret_cast<std::uintptr_t>(__builtin_thread_pointer());
}

std::uintptr_t robust_head(int tid) {
  void* head = nullptr;
  std::size_t length = 0;
  if (syscall(SYS_get_robust_list, tid, &head, &length) != 0) return 0;
  return reinterpret_cast<std::uintptr_t>(head);
}

// How far static thread-local storage reaches down from the thread pointer.
std::size_t static_storage_bytes() {
  std::size_t bytes = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* data) {
        auto& most = *static_cast<std::size_t*>(data);
        const auto at = reinterpret_cast<std::uintptr_t>(info->dlpi_tls_data);
        const std::uintptr_t below = own_pointer() - at;
        if (at != 0 && below < static_storage_most) most = std::max<std::size_t>(most, below);
        return 0;
      },
      &bytes);
  return bytes;
}

// The block of the thread whose descriptor is at `pointer`: the words (begin, size) in it, of which
// the sum is the block's end, right above the descriptor.
Range block_of(Copy& copy, std::uintptr_t pointer) {
  const std::size_t words = copy.take(pointer, descriptor_bytes) / sizeof(std::uint64_t);
  const std::uint64_t* w = copy.words();
  // struct pthread points to itself, twice.
  if (words < 8 || w[0] != pointer || w[2] != pointer) return {};
  for (std::size_t i = 3; i + 1 < words; ++i) {
    const std::uint64_t begin = w[i], size = w[i + 1];
    if (begin % 4096 != 0 || begin >= pointer || size > (std::uint64_t{1} << 36)) continue;
    const std::uint64_t end = begin + size;
    if (end > pointer && end - pointer <= 2 * descriptor_bytes) return {begin, end};
  }
  return {};
}

}  // namespace

std::vector<ThreadMemory> threads_now(Copy& copy, Range main_stack) {
  std::vector<ThreadMemory> all;
  const OwnFd tasks = own_open("/proc/self/task", O_RDONLY | O_DIRECTORY);
  const std::uintptr_t head_offset = robust_head(gettid()) - own_pointer();
  const std::size_t storage = static_storage_bytes();
  const int pid = getpid();
  for (int tid : tids(tasks.get())) {
    ThreadMemory thread;
    thread.tid = tid;
    if (const std::uintptr_t head = robust_head(tid)) {
      const std::uintptr_t pointer = head - head_offset;
      const Range block = tid == pid ? Range{} : block_of(copy, pointer);
      if (block.size() != 0) {
        thread.pointer = pointer;
        thread.stack = {block.begin, pointer - storage};
        thread.storage = {pointer - storage, pointer};
        thread.descriptor = {pointer, block.end};
      } else if (copy.word(pointer) == pointer) {
        thread.pointer = pointer;
        thread.storage = {pointer - storage, pointer};
        thread.descriptor = {pointer, pointer + descriptor_bytes};
      }
    }
    if (tid == pid) thread.stack = main_stack;
    all.push_back(thread);
  }
  return all;
}

std::uintptr_t stack_pointer(int tid) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
  const OwnFd fd = own_open(path, O_RDONLY);
  char text[256];
  const ssize_t n = fd ? read(fd.get(), text, sizeof text - 1) : -1;
  if (n <= 0) return 0;
  text[n] = '\0';
  // "nr a0 a1 a2 a3 a4 a5 sp pc", "-1 sp pc" or "running"
  unsigned long long w[8];
  if (std::sscanf(text, "%*d %llx %llx %llx %llx %llx %llx %llx %llx", w, w + 1, w + 2, w + 3,
                  w + 4, w + 5, w + 6, w + 7) == 8) {
    return w[6];
  }
  return std::sscanf(text, "-1 %llx %llx", w, w + 1) == 2 ? w[0] : 0;
}

bool some_unknown(const std::vector<ThreadMemory>& threads) {
  return std::any_of(threads.begin(), threads.end(),
                     [](const ThreadMemory& t) { return t.pointer == 0; });
}

ThreadBlock thread_block_of(Copy& copy, std::uintptr_t address, Range mapping) {
  // The descriptor lies near the end of its block, which is that of the mapping, or of a block in
  // it: look for a word that holds its own address, from there down.
  constexpr std::uintptr_t reach = 4 * 4096;
  const std::uintptr_t from =
      std::max(mapping.begin, mapping.end - std::min<std::uintptr_t>(reach, mapping.size()));
  std::vector<std::uintptr_t> candidates;
  const std::size_t words = copy.take(from, mapping.end - from) / sizeof(std::uint64_t);
  for (std::size_t i = 0; i + 2 < words; ++i) {
    const std::uintptr_t here = from + i * sizeof(std::uint64_t);
    if (copy.words()[i] == here && copy.words()[i + 2] == here) candidates.push_back(here);
  }
  for (std::uintptr_t pointer : candidates) {
    const Range block = block_of(copy, pointer);
    if (block.contains(address)) return {pointer, address < pointer - static_storage_bytes()};
  }
  return {};
}

}  // namespace molt::audit
