// emit.hpp - inside of this layer: machine code into a buffer, for a place that is not the buffer's.
#pragma once

#include <cstring>
#include <initializer_list>
#include <span>

#include "arch/x86_64/code.hpp"

namespace molt::arch {

// Counts beyond the buffer's end without writing there; the caller looks at overflowed() once.
class Emitter {
 public:
  Emitter(CodeAddress at, std::span<std::byte> out) : at_(at), out_(out) {}

  CodeAddress here() const { return at_ + size_; }
  std::size_t size() const { return size_; }
  bool overflowed() const { return size_ > out_.size(); }

  void bytes(std::span<const std::byte> some) {
    if (size_ + some.size() <= out_.size()) {
      std::memcpy(out_.data() + size_, some.data(), some.size());
    }
    size_ += some.size();
  }
  void bytes(std::initializer_list<unsigned char> some) {
    bytes(std::as_bytes(std::span(some.begin(), some.size())));
  }
  void u32(std::uint32_t value) { bytes(std::as_bytes(std::span(&value, 1))); }
  void u64(std::uint64_t value) { bytes(std::as_bytes(std::span(&value, 1))); }
  // The last four bytes of an instruction: how far `to` is from its end. `behind`: bytes of the
  // instruction that are still to come.
  void rel32(CodeAddress to, std::size_t behind = 0) {
    reach_ = reach_ && reaches(here() + 4 + behind, to);
    u32(static_cast<std::uint32_t>(to - (here() + 4 + behind)));
  }
  void align(std::size_t alignment, unsigned char with) {
    while (here() % alignment != 0) bytes({with});
  }
  // At `offset`, written before.
  void patch_rel32(std::size_t offset, CodeAddress to) {
    auto distance = static_cast<std::uint32_t>(to - (at_ + offset + 4));
    if (offset + 4 <= out_.size()) std::memcpy(out_.data() + offset, &distance, 4);
  }
  void patch_rel8(std::size_t offset, CodeAddress to) {
    if (offset < out_.size()) out_[offset] = static_cast<std::byte>(to - (at_ + offset + 1));
  }
  // Whether every rel32() was in reach.
  bool all_reached() const { return reach_; }

 private:
  CodeAddress at_;
  std::span<std::byte> out_;
  std::size_t size_ = 0;
  bool reach_ = true;
};

}  // namespace molt::arch
