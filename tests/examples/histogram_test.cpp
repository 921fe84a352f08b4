#include "histogram.hpp"

#include <gtest/gtest.h>

TEST(Histogram, EveryValueLiesInItsBucketAndBucketsAreNarrow) {
  std::uint64_t before = 0;
  for (std::uint64_t value = 1; value < (std::uint64_t{1} << 44); value += 1 + value / 97) {
    std::size_t index = Histogram::index(value);
    std::uint64_t last = Histogram::last_of(index);
    ASSERT_LE(value, last);
    ASSERT_LE(last - value, value / 128);
    ASSERT_EQ(Histogram::index(last), index);
    ASSERT_EQ(Histogram::index(last + 1), index + 1);
    ASSERT_GE(index, before);
    before = index;
  }
}

TEST(Histogram, PercentilesOfAKnownDistribution) {
  Histogram h;
  EXPECT_EQ(h.percentile(99), 0u);
  for (std::uint64_t us = 1; us <= 1000; ++us) h.add(us * 1000);
  EXPECT_EQ(h.count(), 1000u);
  EXPECT_EQ(h.max(), 1'000'000u);
  EXPECT_NEAR(static_cast<double>(h.percentile(50)), 500e3, 500e3 / 128);
  EXPECT_NEAR(static_cast<double>(h.percentile(99)), 990e3, 990e3 / 128);
  EXPECT_NEAR(static_cast<double>(h.percentile(99.9)), 999e3, 999e3 / 128);
  EXPECT_EQ(h.percentile(100), 1'000'000u);
}

TEST(Histogram, OneLongPauseShowsInTheTail) {
  Histogram h;
  for (int i = 0; i < 9990; ++i) h.add(100'000);
  for (int i = 0; i < 10; ++i) h.add(5'000'000'000);
  EXPECT_LT(h.percentile(99), 101'000u);
  EXPECT_GT(h.percentile(99.95), 4'900'000'000u);
}
