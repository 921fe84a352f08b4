// The scan and what it is made of, against the obvious way of doing the same.

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <random>
#include <vector>

#include "arch/x86_64/scan.hpp"
#include "threads/procfs.hpp"
#include "threads/ranges.hpp"

namespace {

using namespace molt;
using namespace molt::threads;

// Words in the lines of a cache, as stacks have them.
struct alignas(64) Line {
  std::uint64_t words[8];
};

class Words {
 public:
  explicit Words(std::size_t count) : lines_(count / 8 + 2) {}
  std::uint64_t* at(std::size_t i) { return lines_[0].words + i; }

 private:
  std::vector<Line> lines_;
};

std::size_t slowly(const std::uint64_t* words, std::size_t count, arch::Interval interval) {
  for (std::size_t i = 0; i < count; ++i) {
    if (words[i] >= interval.low && words[i] - interval.low < interval.length) return i;
    const bool state = (words[i] & 0xffffffff) == 0x46505853 &&
                       reinterpret_cast<std::uintptr_t>(words + i) % 64 == 16;
    if (state) return i;
  }
  return count;
}

using Find = std::size_t (*)(const std::uint64_t*, std::size_t, arch::Interval);

void compare_with_slow(Find find) {
  std::mt19937_64 random(1);
  const arch::Interval intervals[] = {{0x7f0000001000, 0x3000},
                                      {0x555555554000, 1},
                                      {1, 0x7fffffffffff},
                                      {0, 0},
                                      {0x400000, 0x7fff00000000}};
  for (const arch::Interval interval : intervals) {
    for (int round = 0; round < 300; ++round) {
      const std::size_t shift = random() % 8;
      const std::size_t count = random() % 200;
      Words words(count + 8);
      std::uint64_t* at = words.at(shift);
      for (std::size_t i = 0; i < count; ++i) {
        switch (random() % 40) {
          case 0:
            at[i] = interval.low;
            break;
          case 1:
            at[i] = interval.low + interval.length - 1;
            break;
          case 2:
            at[i] = 0x46505853 | random() << 32;
            break;
          case 3:
            at[i] = std::uint64_t{0x46505853} << 32;
            break;
          case 4:
            at[i] = ~std::uint64_t{0};
            break;
          case 5:
            at[i] = random();
            break;
          default:
            // Just outside, most of the time.
            at[i] = random() % 2 ? interval.low - 1 : interval.low + interval.length;
        }
      }
      for (std::size_t from = 0; from <= count;) {
        const std::size_t expected = slowly(at + from, count - from, interval);
        ASSERT_EQ(find(at + from, count - from, interval), expected);
        from += expected + 1;
      }
    }
  }
}

// From the first word to the last of a page whose neighbours cannot be read.
void reads_nothing_else(Find find) {
  constexpr std::size_t page = 4096;
  void* memory = mmap(nullptr, 3 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  char* middle = static_cast<char*>(memory) + page;
  ASSERT_EQ(mprotect(middle, page, PROT_READ | PROT_WRITE), 0);
  for (std::size_t count = 1; count <= page / 8; ++count) {
    const auto* at_end = reinterpret_cast<const std::uint64_t*>(middle + page - count * 8);
    EXPECT_EQ(find(at_end, count, {1000, 10}), count);
    EXPECT_EQ(find(reinterpret_cast<const std::uint64_t*>(middle), count, {1000, 10}), count);
  }
  munmap(memory, 3 * page);
}

struct Way {
  const char* name;
  Find find;
  bool there;
};

class Scan : public testing::TestWithParam<Way> {
 protected:
  void SetUp() override {
    if (!GetParam().there) GTEST_SKIP() << "this processor has no " << GetParam().name;
  }
};

TEST_P(Scan, FindsWhatTheObviousWayFinds) { compare_with_slow(GetParam().find); }
TEST_P(Scan, ReadsNothingElse) { reads_nothing_else(GetParam().find); }

INSTANTIATE_TEST_SUITE_P(, Scan,
                         testing::Values(Way{"scalar", arch::find_word_scalar, true},
                                         Way{"AVX2", arch::find_word_avx2, arch::has_avx2()},
                                         Way{"AVX512", arch::find_word_avx512, arch::has_avx512()},
                                         Way{"chosen", arch::find_word, true}),
                         [](const auto& way) { return way.param.name; });

TEST(Ranges, MergesAndFinds) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    RangeSet set;
    std::vector<bool> in(400, false);
    for (int i = 0; i < 12; ++i) {
      const unsigned begin = random() % 390;
      const unsigned end = begin + random() % 12;
      set.add(0x1000 + begin, 0x1000 + end);
      for (unsigned j = begin; j < end; ++j) in[j] = true;
      for (unsigned j = 0; j < 400; ++j) ASSERT_EQ(set.contains(0x1000 + j), in[j]);
    }
    for (std::size_t i = 1; i < set.size(); ++i) ASSERT_LT(set.end_of(i - 1), set.begin_of(i));
  }
  RangeSet none;
  none.add(5, 5);
  none.add(6, 3);
  EXPECT_TRUE(none.empty());
  EXPECT_FALSE(none.contains(5));
}

Snapshot parse(const char* text) { return parse_syscall(text, std::strlen(text)); }

TEST(Procfs, Syscall) {
  const Snapshot s = parse("202 0x7f1 0x80 0x0 0x0 0x0 0xffffffff 0x7ffe12345678 0x7f123456789a\n");
  EXPECT_EQ(s.kind, Snapshot::sleeping);
  EXPECT_EQ(s.number, 202);
  EXPECT_EQ(s.arguments[0], 0x7f1u);
  EXPECT_EQ(s.arguments[5], 0xffffffffu);
  EXPECT_EQ(s.sp, 0x7ffe12345678u);
  EXPECT_EQ(s.pc, 0x7f123456789au);

  const Snapshot outside = parse("-1 0x7ffe12345678 0x7f123456789a\n");
  EXPECT_EQ(outside.kind, Snapshot::stopped);
  EXPECT_EQ(outside.sp, 0x7ffe12345678u);

  EXPECT_EQ(parse("running\n").kind, Snapshot::running);
  EXPECT_EQ(parse("-1 0x0 0x0\n").kind, Snapshot::gone);
  // Cut short, or nothing that the kernel writes: never taken for an answer.
  EXPECT_EQ(parse("").kind, Snapshot::unreadable);
  EXPECT_EQ(parse("202 0x7f1 0x80 0x0 0x0 0x0 0xffffffff 0x7ffe12345678").kind,
            Snapshot::unreadable);
  EXPECT_EQ(parse("202 0x7f1 0x80").kind, Snapshot::unreadable);
  EXPECT_EQ(parse("abc").kind, Snapshot::unreadable);
  EXPECT_EQ(parse("-1 0x7ffe12345678").kind, Snapshot::unreadable);
}

TEST(Procfs, RunCount) {
  std::uint64_t count = 0;
  EXPECT_TRUE(parse_run_count("123 456 789\n", 12, count));
  EXPECT_EQ(count, 789u);
  EXPECT_TRUE(parse_run_count("0 0 0\n", 6, count));
  EXPECT_EQ(count, 0u);
  EXPECT_FALSE(parse_run_count("123 456", 7, count));
}

}  // namespace
