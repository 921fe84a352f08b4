// Both kinds of WordScan find exactly what the definition says: every word w with w - lo < length,
// in unsigned arithmetic, at every position and alignment, and nothing outside of the words given.

#include "arch/x86_64/word_scan.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

using molt::arch::WordScan;

namespace {

std::vector<std::size_t> all(const WordScan& scan, const std::uint64_t* words, std::size_t count,
                             std::uint64_t lo, std::uint64_t length) {
  std::vector<std::size_t> found;
  for (std::size_t at = 0; (at = scan.find(words, count, at, lo, length)) != count; ++at) {
    found.push_back(at);
  }
  return found;
}

class WordScanOf : public testing::TestWithParam<WordScan::Kind> {
 protected:
  void SetUp() override {
    if (scan.kind() != GetParam()) GTEST_SKIP() << "this CPU has no AVX2";
  }
  const WordScan scan{GetParam()};
};

TEST_P(WordScanOf, FindsTheEdgesOfTheRange) {
  for (std::uint64_t lo : {std::uint64_t{0}, std::uint64_t{0x7f0000001000},
                           ~std::uint64_t{0} - 0xfff, std::uint64_t{1} << 63}) {
    const std::uint64_t length = 0x1000;
    const std::uint64_t words[] = {lo - 1, lo, lo + length - 1, lo + length, lo ^ (1ull << 63)};
    EXPECT_EQ(all(scan, words, 5, lo, length), (std::vector<std::size_t>{1, 2})) << lo;
  }
}

TEST_P(WordScanOf, FindsAWordAtEveryPositionOfEveryLength) {
  for (std::size_t count = 0; count <= 70; ++count) {
    for (std::size_t where = 0; where < count; ++where) {
      std::vector<std::uint64_t> words(count, 5);
      words[where] = 1001;
      EXPECT_EQ(all(scan, words.data(), count, 1000, 10), std::vector<std::size_t>{where});
      EXPECT_EQ(scan.find(words.data(), count, where + 1, 1000, 10), count);
    }
  }
}

TEST_P(WordScanOf, AgreesWithTheDefinitionOnRandomWords) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 300; ++round) {
    std::uint64_t lo = random();
    std::uint64_t length = random() >> (random() % 64);
    std::vector<std::uint64_t> words(random() % 500);
    for (auto& word : words) word = random() % 3 ? random() : lo + (random() >> (random() % 64));
    std::vector<std::size_t> expected;
    for (std::size_t i = 0; i < words.size(); ++i) {
      if (words[i] - lo < length) expected.push_back(i);
    }
    EXPECT_EQ(all(scan, words.data(), words.size(), lo, length), expected);
  }
}

TEST_P(WordScanOf, ReadsNothingOutsideOfTheWords) {
  constexpr std::size_t page = 4096;
  void* memory = mmap(nullptr, 3 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  char* middle = static_cast<char*>(memory) + page;
  ASSERT_EQ(mprotect(middle, page, PROT_READ | PROT_WRITE), 0);
  for (std::size_t count = 1; count <= page / 8; ++count) {
    auto* at_end = reinterpret_cast<std::uint64_t*>(middle + page - count * 8);
    EXPECT_EQ(scan.find(at_end, count, 0, 1000, 10), count);
    auto* at_begin = reinterpret_cast<std::uint64_t*>(middle);
    EXPECT_EQ(scan.find(at_begin, count, 0, 1000, 10), count);
  }
  munmap(memory, 3 * page);
}

INSTANTIATE_TEST_SUITE_P(Kinds, WordScanOf,
                         testing::Values(WordScan::Kind::scalar, WordScan::Kind::avx2),
                         [](const auto& kind) {
                           return std::string(kind.param == WordScan::Kind::avx2 ? "avx2"
                                                                                 : "scalar");
                         });

}  // namespace
