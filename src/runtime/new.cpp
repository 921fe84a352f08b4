// The runtime's own operator new, over the reserve of base/memory.hpp. The version script hides it:
// the host and its libraries keep theirs. Sanitizers bring their own, which must see all.

#include <cstdlib>
#include <new>

#include "base/memory.hpp"

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
void* operator new(std::size_t bytes) { return molt::reserve_allocate(bytes); }
void* operator new[](std::size_t bytes) { return molt::reserve_allocate(bytes); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return std::malloc(bytes); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept {
  return std::malloc(bytes);
}
void operator delete(void* memory) noexcept { molt::reserve_release(memory); }
void operator delete[](void* memory) noexcept { molt::reserve_release(memory); }
void operator delete(void* memory, std::size_t bytes) noexcept {
  molt::reserve_release(memory, bytes);
}
void operator delete[](void* memory, std::size_t bytes) noexcept {
  molt::reserve_release(memory, bytes);
}
#endif
