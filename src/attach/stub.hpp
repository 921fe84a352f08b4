// stub.hpp - the machine code that runs in the target before the runtime is there, and what it shares
// with this program. No other code of ours runs in a borrowed thread.
//
//   borrow   runs on the borrowed thread, on its own stack below the red zone. Blocks all signals, maps
//            the shared pages, creates a thread, and returns to where the thread was by rt_sigreturn
//            from a frame that holds all its registers. It needs nobody any more once it is entered:
//            if this program dies now, the target does not notice.
//   helper   the created thread. Calls functions that it is told to call, one at a time, and ends when
//            told to, or when nothing has been asked of it for a while.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace molt::attach {

// Lies at the start of the pages that `borrow` maps. Everything is little and fixed: the code below
// knows the offsets.
struct Shared {
  std::uint64_t bytes;         // of the mapping
  std::uint64_t pthread_self;  // functions of the target's C library
  std::uint64_t pthread_detach;
  std::uint64_t thread;         // pthread_t
  std::uint32_t create_result;  // of pthread_create: an errno
  std::uint32_t created;   // 1: create_result is there, and the borrowed thread is on its way back
  std::uint32_t command;   // number of the last command; written last by this program
  std::uint32_t done;      // number of the last one that was carried out
  std::uint64_t function;  // 0: unmap these pages and end
  std::uint64_t arguments[6];
  std::uint64_t result;
  // timespec: how long the helper sleeps between two looks for a command. Grows by a 32nd with each that
  // finds none, to 10 ms: of helpers whose program was killed there may be many.
  std::int64_t nap[2];
  std::uint32_t patience;  // ends, and leaves the pages, after so many 1024 ns of sleep without one
  std::uint32_t first_nap;  // in ns: where it begins again after a command
  std::uint64_t munmap;
};
static_assert(sizeof(Shared) == 144);

// On the borrowed thread's stack, aligned to 64. The target's signal context and vector registers
// follow.
struct Frame {
  std::uint64_t map_address;
  std::uint64_t map_bytes;
  std::uint64_t pthread_create;
  std::uint64_t helper;
  std::uint64_t errno_location;
  std::uint64_t unused;
  std::uint64_t all_signals;
  std::uint64_t unused_too;
  Shared shared;
};
inline constexpr std::size_t context_offset = 256;  // a ucontext_t, as far as the kernel reads it
inline constexpr std::size_t vectors_offset = 576;  // as XSAVE writes them

struct Stub {
  std::span<const std::byte> code;  // position-independent
  std::size_t borrow;               // offsets of the entries
  std::size_t helper;
};
Stub stub();

}  // namespace molt::attach
