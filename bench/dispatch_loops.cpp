// Built several times: LOOPS names the copy, LOOPS_SHIFT moves its loops on by so many bytes.

#include "dispatch_loops.hpp"

#include <utility>

#include "direct.hpp"
#include "hooks.hpp"

namespace bench {
namespace {

// Every loop adds up what it is answered, so that the answers are needed, and forgets what it knows
// of memory in each iteration, so that it has to look.
template <class Body>
[[gnu::always_inline]] inline void loop(std::uint64_t iterations, Body&& body) {
#if LOOPS_SHIFT > 0
  asm volatile(".skip %c0, 0x90" ::"i"(LOOPS_SHIFT));
#endif
  std::uint64_t sum = 0;
  for (std::uint64_t i = 0; i < iterations; ++i) {
    barrier();
    sum += static_cast<unsigned>(body());
  }
  keep(sum);
}

[[gnu::noinline]] void nothing(std::uint64_t iterations, Request*) {
  loop(iterations, [] { return 0; });
}

[[gnu::noinline]] void empty_hook(std::uint64_t iterations, Request* request) {
  loop(iterations, [=] { return empty(request); });
}

template <auto& hook>
[[gnu::noinline]] void hooked(std::uint64_t iterations, Request* request) {
  loop(iterations, [=] { return hook(request); });
}

// The floor: one direct call for each callback, and the check of its answer that combining needs.
template <unsigned... K>
[[gnu::always_inline]] inline int call_directly(const Request* request,
                                                std::integer_sequence<unsigned, K...>) {
  int answer = 0;
  (void)(__builtin_expect((answer = direct[K](request)) == 0, 1) && ...);
  return answer;
}
template <unsigned N>
[[gnu::noinline]] void directly(std::uint64_t iterations, Request* request) {
  loop(iterations,
       [=] { return call_directly(request, std::make_integer_sequence<unsigned, N>{}); });
}

// What a program without protection does with a list that can change: callbacks are called, and the
// one that objects ends it, just the same.
template <unsigned N>
[[gnu::noinline]] void through_array(std::uint64_t iterations, Request* request) {
  const CallbackArray* array = &callback_array[N];
  loop(iterations, [=] {
    int answer = 0;
    for (unsigned k = 0, count = array->count; k < count; ++k) {
      answer = array->callbacks[k](request);
      if (answer != 0) [[unlikely]]
        break;
    }
    return answer;
  });
}

// What any call of a module's callback costs, however it is protected.
template <unsigned... K>
[[gnu::always_inline]] inline int call_bare(const Request* request,
                                            std::integer_sequence<unsigned, K...>) {
  int answer = 0;
  (void)(__builtin_expect((answer = module_callbacks[K](request)) == 0, 1) && ...);
  return answer;
}
template <unsigned N>
[[gnu::noinline]] void barely(std::uint64_t iterations, Request* request) {
  loop(iterations, [=] { return call_bare(request, std::make_integer_sequence<unsigned, N>{}); });
}

[[gnu::noinline]] int leaf_function(Request* request) {
  barrier();
  return static_cast<int>(request->objections);
}
[[gnu::noinline]] int leaf_function_with_empty(Request* request) {
  if (int error = empty(request)) return error;
  barrier();
  return static_cast<int>(request->objections);
}
[[gnu::noinline]] void leaf(std::uint64_t iterations, Request* request) {
  loop(iterations, [=] { return leaf_function(request); });
}
[[gnu::noinline]] void leaf_with_empty(std::uint64_t iterations, Request* request) {
  loop(iterations, [=] { return leaf_function_with_empty(request); });
}

}  // namespace

const DispatchLoops LOOPS = {
    nothing,
    empty_hook,
    hooked<chain1_rare>,
    hooked<empty_filled>,
    {hooked<chain1>, hooked<chain4>, hooked<chain8>, hooked<chain16>},
    {directly<1>, directly<4>, directly<8>, directly<16>},
    {through_array<1>, through_array<4>, through_array<8>, through_array<16>},
    {barely<1>, barely<4>, barely<8>, barely<16>},
    leaf,
    leaf_with_empty,
    module_callbacks,
};

}  // namespace bench
