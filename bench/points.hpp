// points.hpp - the hook points of the benches, and the callbacks' one body.
#pragma once

#include <molt/hook_point.hpp>

#include <cstdint>

struct Context {
  std::uint64_t refusals;  // bit k: callback k refuses
  std::uint64_t payload[7];
};

// What every callback does, ours and the rivals': one test of a word that the compiler cannot know.
#define BENCH_BODY(k) return (context->refusals >> (k)) & 1

template <int n>
struct ChainPoint;
#define BENCH_POINT(n)                                                  \
  template <>                                                           \
  struct ChainPoint<n> : molt::hook_point<int(Context*)> {              \
    static constexpr const char* name = "bench.chain" #n;               \
    static constexpr int default_result = 0;                            \
  };
BENCH_POINT(1)
BENCH_POINT(4)
BENCH_POINT(8)
BENCH_POINT(16)

// One module sleeps in it, another does not.
struct SharedPoint : molt::hook_point<int(int sleep)> {
  static constexpr const char* name = "bench.shared";
  static constexpr int default_result = 0;
};
