// memory.hpp - memory for the runtime in a process that has none left.
//
// The runtime is compiled without exceptions, so a failed `new` would end the host. Therefore the
// runtime's own operator new (hidden: the host keeps its own) falls back to a reserve, and every
// operation asks first whether the reserve is whole: with no memory an operation is refused with
// ENOMEM before it has changed anything; if memory ends in the middle, the reserve carries it to
// its end.
#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include "base/result.hpp"

namespace molt {

// ENOMEM while more than half of the reserve is in use, or malloc has nothing.
Status memory_available();

// Bytes whose size comes from outside: asking for them may fail.
class Bytes {
 public:
  Bytes() = default;
  ~Bytes();
  Bytes(Bytes&& other) noexcept { swap(other); }
  Bytes& operator=(Bytes&& other) noexcept {
    Bytes(std::move(other)).swap(*this);
    return *this;
  }
  // False, and nothing changed, without memory. New bytes are not initialised.
  [[nodiscard]] bool try_resize(std::size_t size);
  void clear() { Bytes().swap(*this); }
  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  operator std::span<const std::byte>() const { return {data_, size_}; }

 private:
  void swap(Bytes& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
  }
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

// What the runtime's operator new and delete are made of (runtime/new.cpp). Never null: without
// memory and reserve the calling thread waits for some. Wiped when it is taken, as it may be what a
// module has just freed, and when it is released: so the runtime's memory shows no address in a
// module but those that it has on purpose (audit/).
void* reserve_allocate(std::size_t bytes);
void reserve_release(void* memory, std::size_t bytes = 0);

}  // namespace molt
