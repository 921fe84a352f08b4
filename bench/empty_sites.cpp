// Sites FIRST_SITE to FIRST_SITE + 127; built four times.

#include <molt/host.hpp>

#include <array>
#include <utility>

#include "empty_sites.hpp"
#include "harness.hpp"

namespace bench {
namespace {

template <unsigned I>
constexpr auto site_name = [] {
  std::array<char, 16> text{'b', 'e', 'n', 'c', 'h', '.', 's', 'i', 't', 'e'};
  text[10] = static_cast<char>('0' + I / 100);
  text[11] = static_cast<char>('0' + I / 10 % 10);
  text[12] = static_cast<char>('0' + I % 10);
  return text;
}();

template <unsigned I>
struct site_point : ChainPoint {
  static constexpr const char* name = site_name<I>.data();
};
template <unsigned I>
molt::hook<site_point<I>> site_hook;

template <unsigned I, bool hooked>
[[gnu::always_inline]] inline int site([[maybe_unused]] Request* request) {
  barrier();
  if constexpr (hooked) {
    if (int error = site_hook<I>(request)) return error;
  }
  return 0;
}

template <unsigned First, bool hooked, unsigned... I>
[[gnu::noinline]] int function(Request* request, std::integer_sequence<unsigned, I...>) {
  int error = 0;
  (void)(((error = site<First + I, hooked>(request)) == 0) && ...);
  return error;
}

template <bool hooked, unsigned... F>
[[gnu::always_inline]] inline int functions(Request* request,
                                            std::integer_sequence<unsigned, F...>) {
  using Sites = std::make_integer_sequence<unsigned, sites_a_function>;
  int error = 0;
  (void)(((error = function<FIRST_SITE + F * sites_a_function, hooked>(request, Sites{})) == 0) &&
         ...);
  return error;
}

using Functions = std::make_integer_sequence<unsigned, sites_a_file / sites_a_function>;

}  // namespace

#define CONCATENATE2(a, b) a##b
#define CONCATENATE(a, b) CONCATENATE2(a, b)

int CONCATENATE(with_hooks_, FIRST_SITE)(Request* request) {
  return functions<true>(request, Functions{});
}
int CONCATENATE(without_hooks_, FIRST_SITE)(Request* request) {
  return functions<false>(request, Functions{});
}

}  // namespace bench
