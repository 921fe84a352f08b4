// What the words of a stack say: which lie in the ranges, and where a signal handler has interrupted
// what.

#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>

#include "threads/look.hpp"

namespace molt::threads {
namespace {

constexpr std::size_t chunk_bytes = 64 * 1024;
static_assert(chunk_bytes <= Census::scratch_bytes);
// An alternate signal stack is looked for so far from SP.
constexpr std::size_t alternate_window = std::size_t{1} << 20;
constexpr std::size_t most_unknown_stack = std::size_t{64} << 20;

// The frame that the kernel pushes (arch/x86/kernel/signal_64.c): rt_sigframe, 440 bytes, at
// 16n - 8; above it, at the next multiple of 64, the processor's state.
constexpr std::uintptr_t context_below_state = 448;
struct SignalContext {  // struct ucontext
  std::uint64_t flags;
  std::uint64_t link;
  std::uint64_t alternate;  // stack_t
  std::uint64_t alternate_flags;
  std::uint64_t alternate_size;
  std::uint64_t registers[15];  // r8 .. r15, rdi, rsi, rbp, rbx, rdx, rax, rcx
  std::uint64_t sp;
  std::uint64_t pc;
  std::uint64_t cpu_flags;
  std::uint64_t segments;
  std::uint64_t error, trap, old_mask, fault_address;
  std::uint64_t state;
};
static_assert(offsetof(SignalContext, sp) == 160 && offsetof(SignalContext, state) == 224);
constexpr std::uint64_t user_code_segment = 0x33;

constexpr const char* unreadable = "its stack could not be read";

}  // namespace

bool copy_memory(void* to, std::uintptr_t from, std::size_t bytes) {
  iovec local{to, bytes};
  iovec remote{reinterpret_cast<void*>(from), bytes};
  return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == static_cast<ssize_t>(bytes);
}

void Scan::word(std::uintptr_t value, const char* reason, bool certain) {
  if (!ranges_.contains(value)) return;
  if (finding_.hits++ == 0 || certain) {
    finding_.word = value ^ RangeSet::mask;
    finding_.at = 0;
    finding_.depth = 0;
    finding_.reason = reason;
    finding_.certain = finding_.certain || certain;
  }
  finding_.verdict = Verdict::inside;
}

void Scan::words(const std::uint64_t* copy, std::size_t count, std::uintptr_t address) {
  for (std::size_t i = 0; i < count; ++i) {
    i += arch::find_word(copy + i, count - i, interval_);
    if (i >= count) return;
    if (arch::is_signal_state(copy + i, copy[i])) {
      signal_state(address + 8 * i - arch::signal_state_magic_offset);
    }
    if (!ranges_.contains(copy[i]) || ranges_.is_entry(copy[i])) continue;
    if (testimony_ != nullptr && testimony_->is_stale(address + 8 * i)) continue;
    if (finding_.hits++ == 0) {
      finding_.word = copy[i] ^ RangeSet::mask;
      finding_.at = address + 8 * i;
      finding_.depth = finding_.at - sp_;
      finding_.reason = "an address on its stack";
    }
    finding_.verdict = Verdict::inside;
  }
}

// A frame that is not the kernel's, or that something has been written over, does not point at its
// own processor state.
void Scan::signal_state(std::uintptr_t address) {
  const std::uintptr_t frame = address - context_below_state;
  SignalContext context;
  if (!copy_memory(&context, frame, sizeof context)) return;
  if (context.state != address || (context.segments & 0xffff) != user_code_segment) return;
  word(context.pc, "a signal has interrupted it there", false);
  if (interrupted_count_ == most_interrupted) {
    too_many_ = true;
    return;
  }
  Extent alternate{context.alternate, context.alternate + context.alternate_size};
  if (context.alternate_size == 0) alternate = {};
  interrupted_[interrupted_count_++] = {context.sp, frame, alternate};
}

bool Scan::memory(Census& census, std::uintptr_t begin, std::uintptr_t end) {
  begin &= ~std::uintptr_t{7};
  end &= ~std::uintptr_t{7};
  while (begin < end) {
    const std::size_t bytes = std::min<std::size_t>(chunk_bytes, end - begin);
    auto base = reinterpret_cast<std::uintptr_t>(census.scratch());
    std::byte* copy = census.scratch() + (((begin - base) % 64));
    census.note_scratch(bytes + 64);
    if (!copy_memory(copy, begin, bytes)) return false;
    words(reinterpret_cast<const std::uint64_t*>(copy), bytes / 8, begin);
    begin += bytes;
  }
  return true;
}

// A handler on an alternate stack that itself lies in this stack, above what it interrupted: then
// what was interrupted begins below sp.
const char* Scan::own_stack(Census& census, Extent stack) {
  std::uintptr_t from = sp_;
  std::uintptr_t to = stack.end;
  std::size_t seen = 0;
  for (;;) {
    if (!memory(census, from, to)) return unreadable;
    if (too_many_) return "more signal frames on its stack than can be followed";
    std::uintptr_t lower = from;
    for (; seen < interrupted_count_; ++seen) {
      if (!stack.contains(interrupted_[seen].sp)) return "a signal interrupted it on another stack";
      lower = std::min(lower, interrupted_[seen].sp);
    }
    if (lower == from) return nullptr;
    to = from;
    from = lower;
  }
}

const char* Scan::other_stack(Census& census, Extent stack) {
  constexpr const char* elsewhere = "it runs on a stack that is not its own";
  const Extent around = census.maps().writable_around(sp_);
  if (!around) return elsewhere;

  // Which signal frames say that this is the alternate stack? A stale one may be among them: the
  // largest extent and the lowest interrupted address cover all.
  Finding ignored;
  const RangeSet none;
  Scan frames(none, ignored, sp_);
  const std::uintptr_t window = std::min(around.end, sp_ + alternate_window);
  if (!frames.memory(census, sp_, window)) return unreadable;
  if (frames.too_many()) return elsewhere;
  std::uintptr_t end = 0;
  std::uintptr_t lowest = stack.end;
  for (const Interrupted& i : frames.interrupted()) {
    if (!i.alternate.contains(sp_) || !i.alternate.contains(i.frame)) continue;
    end = std::max(end, std::min(i.alternate.end, around.end));
    if (stack.contains(i.sp)) {
      lowest = std::min(lowest, i.sp);
    } else if (!i.alternate.contains(i.sp)) {
      return elsewhere;
    }
  }
  if (end == 0 || lowest == stack.end) return elsewhere;
  if (!memory(census, sp_, end)) return unreadable;
  interrupted_count_ = 0;
  const std::uintptr_t sp = sp_;
  sp_ = lowest;
  const char* why = own_stack(census, stack);
  sp_ = sp;
  return why;
}

// Nothing is known but SP: all that is writable above it, which is more than its stack.
const char* Scan::any_stack(Census& census) {
  std::uintptr_t from = sp_;
  std::size_t seen = 0;
  for (;;) {
    Extent around = census.maps().writable_around(from);
    if (!around) {
      census.maps().forget();
      around = census.maps().writable_around(from);
    }
    if (!around) return "its stack pointer points nowhere";
    if (around.end - from > most_unknown_stack) return "the end of its stack is not known";
    if (!memory(census, from, around.end)) return unreadable;
    if (too_many_) return "more signal frames on its stack than can be followed";
    // What was interrupted elsewhere, or below.
    const Extent scanned{from, around.end};
    while (seen < interrupted_count_ && scanned.contains(interrupted_[seen].sp)) ++seen;
    if (seen == interrupted_count_) return nullptr;
    from = interrupted_[seen++].sp;
  }
}

}  // namespace molt::threads
