// histogram.hpp - latencies in buckets whose width grows with the value, as in HdrHistogram: every
// percentile is known to better than 1 %, from nanoseconds to minutes, in a fixed 40 KiB.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

class Histogram {
 public:
  void add(std::uint64_t ns) {
    ++buckets_[std::min(index(ns), buckets_.size() - 1)];
    ++count_;
    max_ = std::max(max_, ns);
  }

  std::uint64_t count() const { return count_; }
  std::uint64_t max() const { return max_; }

  // The smallest latency that `percent` of all values do not exceed; 0 if there are none.
  std::uint64_t percentile(double percent) const {
    auto wanted =
        static_cast<std::uint64_t>(std::ceil(percent / 100 * static_cast<double>(count_)));
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i < buckets_.size(); ++i) {
      seen += buckets_[i];
      if (seen >= wanted && seen > 0) return std::min(last_of(i), max_);
    }
    return max_;
  }

  // Bucket of a value, and the largest value of a bucket. Values below 128 have a bucket each; from
  // there on every power of two is cut into 128 equal buckets.
  static std::size_t index(std::uint64_t value) {
    if (value < 128) return value;
    int shift = std::bit_width(value) - 8;
    return static_cast<std::size_t>(shift) * 128 + (value >> shift);
  }
  static std::uint64_t last_of(std::size_t index) {
    if (index < 256) return index;
    std::size_t shift = index / 128 - 1;
    return ((index - shift * 128 + 1) << shift) - 1;
  }

 private:
  std::array<std::uint64_t, 128 * 40> buckets_{};
  std::uint64_t count_ = 0;
  std::uint64_t max_ = 0;
};
