#include "arch/x86_64/scan.hpp"

#include <immintrin.h>

namespace molt::arch {
namespace {

constexpr std::size_t line_words = 8;

bool matches(const std::uint64_t* at, std::uint64_t word, Interval interval) {
  return word - interval.low < interval.length || is_signal_state(at, word);
}

}  // namespace

// A sanitizer would find fault with reading what another function has left on the stack.
__attribute__((no_sanitize("address", "thread"))) std::size_t find_word_scalar(
    const std::uint64_t* words, std::size_t count, Interval interval) {
  for (std::size_t i = 0; i < count; ++i) {
    if (matches(words + i, words[i], interval)) return i;
  }
  return count;
}

// Signed compares only: both sides are moved by 2^63.
__attribute__((target("avx2"), no_sanitize("address", "thread"))) std::size_t find_word_avx2(
    const std::uint64_t* words, std::size_t count, Interval interval) {
  std::size_t i = 0;
  while (i < count && reinterpret_cast<std::uintptr_t>(words + i) % 64 != 0) {
    if (matches(words + i, words[i], interval)) return i;
    ++i;
  }
  constexpr std::uint64_t sign = std::uint64_t{1} << 63;
  const __m256i bias = _mm256_set1_epi64x(static_cast<long long>(sign - interval.low));
  const __m256i limit = _mm256_set1_epi64x(static_cast<long long>(interval.length ^ sign));
  // Compared by the other half of the processor, which has nothing else to do here.
  std::uint32_t magic = signal_state_magic;
  asm("" : "+r"(magic));
  constexpr std::size_t magic_word = signal_state_magic_offset % 64 / 8;
  constexpr std::size_t block = 4 * line_words;
  for (;;) {
    for (; i + block <= count; i += block) {
      __m256i any = _mm256_setzero_si256();
      bool has_state = false;
      for (std::size_t line = 0; line < block; line += line_words) {
        const std::uint64_t* words_of_line = words + i + line;
        const auto* at = reinterpret_cast<const __m256i*>(words_of_line);
        const __m256i a = _mm256_add_epi64(_mm256_load_si256(at), bias);
        const __m256i b = _mm256_add_epi64(_mm256_load_si256(at + 1), bias);
        any = _mm256_or_si256(
            any, _mm256_or_si256(_mm256_cmpgt_epi64(limit, a), _mm256_cmpgt_epi64(limit, b)));
        if (static_cast<std::uint32_t>(words_of_line[magic_word]) == magic) [[unlikely]] {
          has_state = true;
          break;
        }
      }
      if (has_state || !_mm256_testz_si256(any, any)) break;
    }
    // One block that has something, or the last one.
    const std::size_t end = i + block <= count ? i + block : count;
    for (; i < end; ++i) {
      if (matches(words + i, words[i], interval)) return i;
    }
    if (i == count) return count;
  }
}

// With all lanes set: without a mask gcc 12's own header draws a warning (its bug 105593).
__attribute__((target("avx512f"), always_inline)) inline __m512i lesser(__m512i a, __m512i b) {
  return _mm512_maskz_min_epu64(0xff, a, b);
}

// The least of a block's distances from the interval's low end tells for all of its words. A minimum of
// unsigned 64-bit words is what AVX2 lacks: its compare, two for each line, has one unit to run on.
__attribute__((target("avx512f"), no_sanitize("address", "thread"))) std::size_t find_word_avx512(
    const std::uint64_t* words, std::size_t count, Interval interval) {
  std::size_t i = 0;
  while (i < count && reinterpret_cast<std::uintptr_t>(words + i) % 64 != 0) {
    if (matches(words + i, words[i], interval)) return i;
    ++i;
  }
  const __m512i low = _mm512_set1_epi64(static_cast<long long>(interval.low));
  const __m512i length = _mm512_set1_epi64(static_cast<long long>(interval.length));
  std::uint32_t magic = signal_state_magic;
  asm("" : "+r"(magic));
  constexpr std::size_t magic_word = signal_state_magic_offset % 64 / 8;
  constexpr std::size_t block = 4 * line_words;
  for (;;) {
    for (; i + block <= count; i += block) {
      const std::uint64_t* at = words + i;
      const __m512i a = _mm512_sub_epi64(_mm512_load_si512(at), low);
      const __m512i b = _mm512_sub_epi64(_mm512_load_si512(at + line_words), low);
      const __m512i c = _mm512_sub_epi64(_mm512_load_si512(at + 2 * line_words), low);
      const __m512i d = _mm512_sub_epi64(_mm512_load_si512(at + 3 * line_words), low);
      const __m512i least = lesser(lesser(a, b), lesser(c, d));
      if (_mm512_cmplt_epu64_mask(least, length) != 0) break;
      bool has_state = false;
      for (std::size_t line = 0; line < block; line += line_words) {
        has_state |= static_cast<std::uint32_t>(at[line + magic_word]) == magic;
      }
      if (has_state) [[unlikely]]
        break;
    }
    const std::size_t end = i + block <= count ? i + block : count;
    for (; i < end; ++i) {
      if (matches(words + i, words[i], interval)) return i;
    }
    if (i == count) return count;
  }
}

bool has_avx2() { return __builtin_cpu_supports("avx2"); }
bool has_avx512() { return __builtin_cpu_supports("avx512f"); }

std::size_t find_word(const std::uint64_t* words, std::size_t count, Interval interval) {
  static const auto find = has_avx512() ? find_word_avx512
                           : has_avx2() ? find_word_avx2
                                        : find_word_scalar;
  return find(words, count, interval);
}

}  // namespace molt::arch
