// unwinders.hpp - exceptions pass through the patch's functions: each unwinder of the process that a
// thread may use there is told of their frames.
//
// A C++ program has libgcc_s, or a libgcc of its own inside; the runtime has its own as well, for
// threads/own_frames.hpp. What comes later by dlopen() is not told: a thread that is cancelled then
// ends its unwinding at the patched function, and runs no handlers above it.
#pragma once

#include <cstdint>
#include <vector>

#include "elf/loaded_symbols.hpp"

namespace molt::linker {

// What takes the frames back, one for each unwinder that was told.
[[nodiscard]] std::vector<void (*)(void*)> register_frames(std::uintptr_t frames,
                                                           const elf::NamedObject& target);
void forget_frames(std::uintptr_t frames, const std::vector<void (*)(void*)>& unwinders);

}  // namespace molt::linker
