// A module of about 1.8 MB of code and relocated data, as a large plugin is.
#include <molt/module.hpp>

#include <atomic>
#include <utility>

namespace {

template <int k>
[[gnu::noinline]] double piece(double x) {
  // Enough straight code that each instance takes about 350 bytes.
  for (int i = 0; i < 2; ++i) {
    x = x * (k + 1.25) - x / (k + 3.5);
    x += (x > k) ? x * 0.5 - k : x * 1.5 + k;
    x = x * x - (k * 0.125) * x + (k + 7) / (x + 1000.5);
  }
  return x;
}

template <int... k>
constexpr auto table(std::integer_sequence<int, k...>) {
  return std::array<double (*)(double), sizeof...(k)>{piece<k>...};
}

constexpr auto pieces = table(std::make_integer_sequence<int, 6000>{});

int start() {
  double x = 1;
  for (int i = 0; i < 8; ++i) x = pieces[static_cast<unsigned>(x) % pieces.size()](x);
  // The host counts the inits in its log.
  molt_log(&molt_this_module, "init");
  return x > 1e300 ? -EDOM : 0;
}
void finish() {}

}  // namespace

MOLT_MODULE("bench_big", "1", "Apache-2.0", "a large module")
MOLT_INIT(start)
MOLT_EXIT(finish)
