// own_memory.hpp - mappings that hold nothing but the runtime's own data.
//
// A search of the process's memory for pointers into a module (audit/) leaves these out: hook
// chains, which name callbacks that are gone until they are recycled, and the search's own buffer.
// Nothing that the program stores can be in there. Memory of the runtime on the heap is not listed:
// it gives its pointers up before the search (reserve_release() wipes what it frees), and a test
// sees that nothing is left.
//
// Lock-free; listed for ever, as such mappings are never unmapped.
#pragma once

#include <cstddef>
#include <cstdint>

namespace molt {

struct OwnMemory {
  std::uintptr_t begin, end;
};

void note_own_memory(const void* begin, std::size_t bytes);
// A new mapping of that kind, zeroed, for ever. Null: no memory.
void* map_own_memory(std::size_t bytes);
// The mappings noted so far, in no order.
std::size_t own_memory_count();
OwnMemory own_memory(std::size_t index);

// Threads of the runtime's own: between operations there is nothing on their stacks, and during one
// nothing of the program's. Each notes itself at its begin and its end.
void note_own_thread(bool begins);
bool is_own_thread(int tid);

}  // namespace molt
