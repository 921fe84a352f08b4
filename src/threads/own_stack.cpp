#include "threads/own_stack.hpp"

#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstddef>
#include <cstring>

#include "threads/census.hpp"
#include "threads/look.hpp"

namespace molt::threads {
namespace {

// Of the thread that runs on the kernel's stack: the end is written first.
std::atomic<std::uintptr_t> g_main_descriptor{0};
std::atomic<std::uintptr_t> g_main_stack_end{0};

// Where the stack ends that the calling thread was born with: at its own descriptor, which the C
// library puts on top of it, or, of the main thread, where the kernel's part begins. 0: `sp` is not on
// it, as far as one can see.
std::uintptr_t stack_end(std::uintptr_t sp) {
  const auto descriptor = reinterpret_cast<std::uintptr_t>(__builtin_thread_pointer());
  const bool is_first = descriptor == g_main_descriptor.load(std::memory_order_acquire);
  const std::uintptr_t end =
      is_first ? g_main_stack_end.load(std::memory_order_relaxed) : descriptor;
  constexpr std::uintptr_t most = std::uintptr_t{1} << 30;
  return sp >= end || end - sp > most ? 0 : end;
}

// On the alternate signal stack: where the stack pointer was when the first handler there began. The
// kernel keeps it in the frame that it built, beside the bounds of that stack. 0: not found.
// Reads what lies between variables, too.
__attribute__((no_sanitize("address"))) std::uintptr_t interrupted_sp(std::uintptr_t sp,
                                                                      const stack_t& alternate) {
  static_assert(offsetof(ucontext_t, uc_stack) + sizeof(stack_t) ==
                offsetof(ucontext_t, uc_mcontext.gregs));
  constexpr std::size_t sp_place = sizeof(stack_t) / sizeof(std::uintptr_t) + REG_RSP;
  const auto begin = reinterpret_cast<std::uintptr_t>(alternate.ss_sp);
  const auto* end = reinterpret_cast<const std::uintptr_t*>(begin + alternate.ss_size);
  std::uintptr_t lowest = 0;
  for (const auto* at = reinterpret_cast<const std::uintptr_t*>(sp & ~std::uintptr_t{7});
       at + sp_place < end; ++at) {
    if (at[0] != begin || at[2] != alternate.ss_size) continue;
    const std::uintptr_t found = at[sp_place];
    // A handler on top of another; a leftover can only make more of the stack be looked at.
    if (found - begin <= alternate.ss_size || stack_end(found) == 0) continue;
    if (lowest == 0 || found < lowest) lowest = found;
  }
  return lowest;
}

// Copied by the kernel: should memory be missing in between, that is an answer, not a fault. To the end
// if it is of interest where the outermost lies. Not inline: only one of the buffers is on the stack.
template <std::size_t words>
__attribute__((noinline)) Own scan_own_stack(const RangeSet& ranges, std::uintptr_t sp,
                                             std::uintptr_t end, std::uintptr_t* held_at) {
  std::uintptr_t buffer[words];
  Own own = Own::leaves;
  for (std::uintptr_t at = sp & ~std::uintptr_t{7};
       at < end && (own == Own::leaves || held_at != nullptr);) {
    const std::size_t bytes = std::min<std::size_t>(sizeof buffer, end - at);
    if (!copy_memory(buffer, at, bytes)) {
      own = Own::unknown;
      break;
    }
    for (std::size_t i = 0; i < bytes / sizeof(std::uintptr_t); ++i) {
      if (!ranges.contains(buffer[i])) continue;
      own = Own::stays;
      if (held_at != nullptr) *held_at = at + i * sizeof(std::uintptr_t);
    }
    at += bytes;
  }
  // What was found would be found again, by whoever looks at this thread when it stands here next.
  std::memset(buffer, 0, sizeof buffer);
  asm volatile("" ::"r"(buffer) : "memory");
  return own;
}

// On an alternate stack, which may have 8 KiB, lie a signal's frame and the gate's own already: 6.3 KiB of them
// where there are the registers of AVX-512.
constexpr std::size_t few_words = 64, many_words = 512;

}  // namespace

Own look_at_own_stack(const RangeSet& ranges, std::uintptr_t sp, std::uintptr_t* held_at) {
  stack_t alternate;
  if (syscall(SYS_sigaltstack, nullptr, &alternate) != 0) return Own::unknown;
  const bool is_on_alternate = alternate.ss_flags & SS_ONSTACK;
  const auto alternate_end = reinterpret_cast<std::uintptr_t>(alternate.ss_sp) + alternate.ss_size;
  if (held_at != nullptr) {
    // On the stack that the thread is on now: of another one nobody knows how much is in use still.
    std::uintptr_t word = 0;
    if (*held_at >= sp && *held_at < (is_on_alternate ? alternate_end : stack_end(sp)) &&
        copy_memory(&word, *held_at, sizeof word) && ranges.contains(word)) {
      return Own::stays;
    }
    *held_at = 0;
  }
  if (is_on_alternate) {
    constexpr std::uintptr_t red_zone = 128;
    const std::uintptr_t below = interrupted_sp(sp, alternate);
    if (below == 0) return Own::unknown;
    const Own here = scan_own_stack<few_words>(ranges, sp, alternate_end, held_at);
    if (here != Own::leaves) return here;
    sp = below - red_zone;
  }
  const std::uintptr_t end = stack_end(sp);
  if (end == 0) return Own::unknown;
  return is_on_alternate ? scan_own_stack<few_words>(ranges, sp, end, held_at)
                         : scan_own_stack<many_words>(ranges, sp, end, held_at);
}

void find_main_stack() {
  if (g_main_descriptor.load(std::memory_order_relaxed) != 0) return;
  static_cast<void>(inspect([](Census& census) {
    if (!census.refresh()) return;
    Thread* first = census.find(getpid());
    if (first == nullptr) return;
    census.find_stack(*first);
    g_main_stack_end.store(first->stack.end, std::memory_order_relaxed);
    g_main_descriptor.store(census.descriptor_of(*first), std::memory_order_release);
  }));
}

}  // namespace molt::threads
