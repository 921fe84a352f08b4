// word_scan.hpp - which 8-byte words lie in a range of addresses.
//
// One test per word, (word - lo) < length, on four words at a time with AVX2 where the CPU has it
// and on one at a time elsewhere; chosen once, at the first call. Wanted is the envelope of all
// ranges that matter: hits are rare, and the caller looks at each more closely.
//
//     const WordScan scan;  // the fastest that this CPU has
//     for (std::size_t at = 0; (at = scan.find(words, count, at, lo, length)) != count; ++at) {
//       if (belongs(words[at])) ...
//     }
//
// Async-signal-safe, allocates nothing, reads nothing outside of words[from, count). The words need
// no alignment beyond that of 8 bytes. Only this file's vector function is compiled for AVX2.
// Checked by tests/audit/word_scan_test.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace molt::arch {

class WordScan {
 public:
  enum class Kind { scalar, avx2 };

  // The best kind of this CPU.
  WordScan();
  // A given kind; what the CPU lacks becomes scalar.
  explicit WordScan(Kind kind);

  Kind kind() const { return kind_; }

  // The index of the first word at or after `from` in [lo, lo + length); `count` if there is none.
  std::size_t find(const std::uint64_t* words, std::size_t count, std::size_t from,
                   std::uint64_t lo, std::uint64_t length) const;

 private:
  Kind kind_;
};

}  // namespace molt::arch
