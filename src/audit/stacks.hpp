// stacks.hpp - whose stack, thread-local storage or descriptor an address lies in.
//
// A thread's descriptor (glibc's struct pthread) sits at its thread pointer; the static thread-local
// storage lies right below, and, in every thread that pthread_create() made, the stack below that in
// one block. Where that block begins and ends is in the descriptor itself, as two words (address,
// size) that are recognised by what they must mean. The thread pointer of another thread is its
// robust list's head minus a constant of this process's glibc.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "audit/copy.hpp"
#include "elf/loaded.hpp"

namespace molt::audit {

using elf::Range;

struct ThreadMemory {
  int tid = 0;
  std::uintptr_t pointer = 0;  // 0: not known
  Range stack;                 // empty: not known
  Range storage;               // static thread-local storage
  Range descriptor;
};

// Of all threads that exist; those whose memory cannot be told have empty ranges. `main_stack`: the
// mapping that /proc/self/maps calls [stack].
std::vector<ThreadMemory> threads_now(Copy& copy, Range main_stack);

// Where the stack pointer of a sleeping thread is; 0: it runs, or cannot be asked.
std::uintptr_t stack_pointer(int tid);

// Has one of them only just begun? Its memory cannot be told from that of one that has ended.
bool some_unknown(const std::vector<ThreadMemory>& threads);

// The block of a thread of glibc's that an address of anonymous memory lies in, whether the thread
// lives, has only just begun, or has ended and glibc keeps its block for the next.
struct ThreadBlock {
  std::uintptr_t pointer = 0;  // the thread's; 0: the address is in none
  bool in_stack = false;       // else in its thread-local storage or descriptor
};
ThreadBlock thread_block_of(Copy& copy, std::uintptr_t address, Range mapping);

}  // namespace molt::audit
