#include "arch/x86_64/word_scan.hpp"

#include <immintrin.h>

namespace molt::arch {
namespace {

std::size_t find_scalar(const std::uint64_t* words, std::size_t count, std::size_t at,
                        std::uint64_t lo, std::uint64_t length) {
  for (; at < count; ++at) {
    if (words[at] - lo < length) break;
  }
  return at;
}

// AVX2 compares signed numbers only. word - (lo + 2^63) is (word - lo) with its top bit flipped, so
// that the signed order of the differences is the unsigned one of the distances.
__attribute__((target("avx2"))) std::size_t find_avx2(const std::uint64_t* words, std::size_t count,
                                                      std::size_t at, std::uint64_t lo,
                                                      std::uint64_t length) {
  constexpr std::uint64_t top = std::uint64_t{1} << 63;
  constexpr std::size_t lanes = 4;
  constexpr std::size_t block = 4 * lanes;
  const std::uint64_t moved_lo = lo + top;
  const std::uint64_t moved_length = length + top;
  const __m256i base = _mm256_set1_epi64x(static_cast<long long>(moved_lo));
  const __m256i limit = _mm256_set1_epi64x(static_cast<long long>(moved_length));
  auto hits = [&](std::size_t i) __attribute__((target("avx2"), always_inline)) {
    __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + i));
    return _mm256_cmpgt_epi64(limit, _mm256_sub_epi64(v, base));
  };
  for (; at + block <= count; at += block) {
    __m256i a = _mm256_or_si256(hits(at), hits(at + lanes));
    __m256i b = _mm256_or_si256(hits(at + 2 * lanes), hits(at + 3 * lanes));
    __m256i any = _mm256_or_si256(a, b);
    if (!_mm256_testz_si256(any, any)) break;
  }
  // The block with a hit, or the rest.
  return find_scalar(words, count, at, lo, length);
}

}  // namespace

WordScan::WordScan() : WordScan(Kind::avx2) {}

WordScan::WordScan(Kind kind) : kind_(kind) {
  if (kind == Kind::avx2 && !__builtin_cpu_supports("avx2")) kind_ = Kind::scalar;
}

std::size_t WordScan::find(const std::uint64_t* words, std::size_t count, std::size_t from,
                           std::uint64_t lo, std::uint64_t length) const {
  return kind_ == Kind::avx2 ? find_avx2(words, count, from, lo, length)
                             : find_scalar(words, count, from, lo, length);
}

}  // namespace molt::arch
