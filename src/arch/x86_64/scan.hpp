// scan.hpp - looking through memory for words that lie in one interval, and for the places where the
// kernel saved a signal's frame.
//
// One compare for each word decides against the interval around all ranges; what passes is looked at
// exactly by the caller. AVX-512 or AVX2 where the processor has it, chosen at run time; the same
// answers without. Any thread, async-signal-safe.
#pragma once

#include <cstddef>
#include <cstdint>

namespace molt::arch {

struct Interval {
  std::uint64_t low;
  std::uint64_t length;
};

// A frame of a signal handler ends in the processor's saved state, 64-byte aligned; its 58th word
// begins with this (FP_XSTATE_MAGIC1). So a frame shows in exactly one word of a cache line.
inline constexpr std::uint32_t signal_state_magic = 0x46505853;
inline constexpr std::size_t signal_state_magic_offset = 464;

inline bool is_signal_state(const std::uint64_t* word, std::uint64_t value) {
  return static_cast<std::uint32_t>(value) == signal_state_magic &&
         reinterpret_cast<std::uintptr_t>(word) % 64 == signal_state_magic_offset % 64;
}

// The first index from which on a word lies in the interval, or begins a signal's saved state; count
// if there is none. `words` is 8-byte aligned, and lies in its cache line as the original does.
std::size_t find_word(const std::uint64_t* words, std::size_t count, Interval interval);

// The three ways, for tests and figures.
std::size_t find_word_scalar(const std::uint64_t* words, std::size_t count, Interval interval);
std::size_t find_word_avx2(const std::uint64_t* words, std::size_t count, Interval interval);
std::size_t find_word_avx512(const std::uint64_t* words, std::size_t count, Interval interval);
bool has_avx2();
bool has_avx512();

}  // namespace molt::arch
