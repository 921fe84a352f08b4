// Hooks to which nothing is attached: what a host pays for declaring them everywhere.

#include <molt/host.hpp>

#include <array>
#include <cstdio>
#include <utility>

#include "harness.hpp"

namespace {

template <int k>
struct EmptyPoint : molt::hook_point<int(const void*)> {
  static constexpr auto text = [] {
    std::array<char, 16> t{'b', 'e', 'n', 'c', 'h', '.', 'e'};
    t[7] = static_cast<char>('0' + k / 100);
    t[8] = static_cast<char>('0' + k / 10 % 10);
    t[9] = static_cast<char>('0' + k % 10);
    return t;
  }();
  static constexpr const char* name = text.data();
  static constexpr int default_result = 0;
};
template <int k>
molt::hook<EmptyPoint<k>> empty_hook;

// A loop with a little work, as hooks stand in programs: a dependent chain of integer operations.
// The empty hook's branch is off that chain.
[[gnu::always_inline]] inline std::uint64_t work(std::uint64_t x) {
  for (int i = 0; i < 4; ++i) x = x * 6364136223846793005u + 1442695040888963407u;
  return x;
}

[[gnu::noinline]] void with_hook(std::uint64_t n) {
  std::uint64_t x = 1;
  for (std::uint64_t i = 0; i < n; ++i) {
    x = work(x);
    bench::clobber();
    if (empty_hook<0>(&x) != 0) break;
  }
  bench::keep(x);
}
[[gnu::noinline]] void without_hook(std::uint64_t n) {
  std::uint64_t x = 1;
  for (std::uint64_t i = 0; i < n; ++i) {
    x = work(x);
    bench::clobber();
    bench::keep(&x);
  }
  bench::keep(x);
}

bench::Registered empty("hook.empty", [] {
  bench::Pair p = bench::paired(with_hook, without_hook);
  bench::report({"hook.empty", p.ours, "ns", "the loop without it", p.rival, p.ratio, "<= 1.05"});
});

// 512 different hooks, one after the other, each at a call site of its own.
template <int... k>
[[gnu::always_inline]] inline std::uint64_t all_of(std::uint64_t x, std::integer_sequence<int, k...>) {
  ((x = work(x), bench::clobber(), x += static_cast<unsigned>(empty_hook<k>(&x))), ...);
  return x;
}
template <int... k>
[[gnu::always_inline]] inline std::uint64_t none_of(std::uint64_t x,
                                                    std::integer_sequence<int, k...>) {
  ((x = work(x), bench::clobber(), bench::keep(&x), void(k)), ...);
  return x;
}
using All = std::make_integer_sequence<int, 512>;

[[gnu::noinline]] void with_512(std::uint64_t n) {
  std::uint64_t x = 1;
  for (std::uint64_t i = 0; i < n; ++i) x = all_of(x, All{});
  bench::keep(x);
}
[[gnu::noinline]] void without_512(std::uint64_t n) {
  std::uint64_t x = 1;
  for (std::uint64_t i = 0; i < n; ++i) x = none_of(x, All{});
  bench::keep(x);
}

bench::Registered empty512("hook.empty512", [] {
  bench::Pair p = bench::paired(with_512, without_512);
  double extra = (p.ours - p.rival) / 512;
  bench::report({"hook.empty512", extra, "ns", "(difference to none, of 512 sites)", p.rival / 512,
                 extra, "<= 0.2"});
});

}  // namespace
