#include "arch/x86_64/signal_frame.hpp"

#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace molt::arch {
namespace {

// struct rt_sigframe (arch/x86/include/asm/sigframe.h): the context, which is shorter than the C library's, then
// the siginfo. Words of that, from the context on.
constexpr std::size_t context_words = 38;
constexpr std::size_t frame_words = context_words + 1;
constexpr std::size_t segments_word = offsetof(ucontext_t, uc_mcontext) / 8 + REG_CSGSFS;
constexpr std::size_t state_word = offsetof(ucontext_t, uc_mcontext.fpregs) / 8;
constexpr std::uint64_t user_code_segment = 0x33;
constexpr std::size_t longest_search = 64 << 10;

bool copy(std::uint64_t* to, std::uintptr_t from, std::size_t words) {
  const iovec local{to, 8 * words};
  const iovec remote{reinterpret_cast<void*>(from), 8 * words};
  return syscall(SYS_process_vm_readv, getpid(), &local, 1L, &remote, 1L, 0L) ==
         static_cast<long>(8 * words);
}

// The processor's state lies right behind, in its own line of the cache.
bool is_frame(int signal, const std::uint64_t* words, std::uintptr_t at) {
  const std::uintptr_t above = words[state_word] - at;
  return above >= 8 * frame_words && above < 1024 && words[state_word] % 64 == 0 &&
         (words[segments_word] & 0xffff) == user_code_segment &&
         static_cast<int>(words[context_words]) == signal;
}

SignalFrame frame_at(std::uintptr_t context) {
  return {reinterpret_cast<siginfo_t*>(context + 8 * context_words),
          reinterpret_cast<ucontext_t*>(context)};
}

}  // namespace

SignalFrame find_signal_frame(int signal, siginfo_t* info, void* context, const void* from) {
  const auto given = reinterpret_cast<std::uintptr_t>(context);
  if (reinterpret_cast<std::uintptr_t>(info) == given + 8 * context_words && given != 0)
    return {info, static_cast<ucontext_t*>(context)};
  // In pieces that fit on an alternate stack.
  constexpr std::size_t piece = 128;
  std::uint64_t words[piece];
  std::uintptr_t at = (reinterpret_cast<std::uintptr_t>(from) + 7) & ~std::uintptr_t{7};
  const std::uintptr_t end = at + longest_search;
  while (at < end) {
    // The stack may end in this one.
    std::size_t count = std::min(piece, (4096 - at % 4096) / 8 + frame_words);
    if (!copy(words, at, count) && !copy(words, at, count = (4096 - at % 4096) / 8)) break;
    if (count <= frame_words) break;
    for (std::size_t i = 0; i + frame_words <= count; ++i) {
      if (is_frame(signal, words + i, at + 8 * i)) return frame_at(at + 8 * i);
    }
    at += 8 * (count - frame_words + 1);
  }
  return {};
}

}  // namespace molt::arch
