// Chains of 1 to 16 callbacks: against direct calls of the same callbacks, against the plain loop
// over an array that has no protection at all, and against what C++ programs use for the purpose.
// Every variant tests each result and stops at the first that is not 0, as a security hook does.

#include <molt/host.hpp>

#include <atomic>
#include <boost/signals2.hpp>
#include <functional>
#include <shared_mutex>
#include <vector>

#include "direct.hpp"
#include "harness.hpp"

namespace {

molt::hook<ChainPoint<1>> chain1;
molt::hook<ChainPoint<4>> chain4;
molt::hook<ChainPoint<8>> chain8;
molt::hook<ChainPoint<16>> chain16;

template <int n>
auto& chain() {
  if constexpr (n == 1) return chain1;
  if constexpr (n == 4) return chain4;
  if constexpr (n == 8) return chain8;
  if constexpr (n == 16) return chain16;
}

std::string callback_module(int k) { return "bench_callback_" + std::to_string(k); }

// The modules stay loaded from the first bench that needs them to the last.
void load_all() {
  static bool loaded = [] {
    for (int k = 0; k < 16; ++k) bench::must_load(callback_module(k));
    return true;
  }();
  bench::keep(loaded);
}

// Each loop runs with a context of its own on the stack, which the compiler must reload.
template <class F>
[[gnu::always_inline]] inline void loop(std::uint64_t n, F&& f) {
  Context context{};
  std::uint64_t refused = 0;
  Context* c = &context;
  for (std::uint64_t i = 0; i < n; ++i) {
    asm volatile("" : "+r"(c) : : "memory");
    refused += static_cast<unsigned>(f(c));
  }
  bench::keep(refused);
}

template <int n>
[[gnu::noinline]] void ours(std::uint64_t iterations) {
  loop(iterations, [](Context* c) { return chain<n>()(c); });
}
template <int n>
[[gnu::noinline]] void direct(std::uint64_t iterations) {
  loop(iterations, [](Context* c) { return call_direct<0, n>(c); });
}

struct Array {
  int n = 0;
  Callback callbacks[16];
};
Array g_array;
[[gnu::noinline]] void array(std::uint64_t iterations) {
  Array* a = &g_array;
  loop(iterations, [a](Context* c) {
    int result = 0;
    for (int k = 0; k < a->n; ++k) {
      if ((result = a->callbacks[k](c)) != 0) break;
    }
    return result;
  });
}
void fill_array(int n) {
  g_array.n = n;
  for (int k = 0; k < n; ++k) g_array.callbacks[k] = direct_callbacks[k];
}

template <int n>
void against_direct(const char* name, const char* goal) {
  load_all();
  bench::Pair p = bench::paired(ours<n>, direct<n>);
  bench::report({name, p.ours, "ns", "direct calls", p.rival, p.ratio, goal});
}
template <int n>
void against_array(const char* name, const char* goal) {
  load_all();
  fill_array(n);
  bench::Pair p = bench::paired(ours<n>, array);
  bench::report({name, p.ours, "ns", "unprotected array loop", p.rival, p.ratio, goal});
}

bench::Registered chain1_direct("hook.chain1", [] { against_direct<1>("hook.chain1", "<= 1.35"); });
bench::Registered chain4_direct("hook.chain4", [] { against_direct<4>("hook.chain4", "<= 1.15"); });
bench::Registered chain16_direct("hook.chain16",
                                 [] { against_direct<16>("hook.chain16", "<= 1.05"); });
bench::Registered chain8_array("hook.chain8.array",
                               [] { against_array<8>("hook.chain8.array", "<= 0.65"); });
bench::Registered chain16_array("hook.chain16.array",
                                [] { against_array<16>("hook.chain16.array", "<= 0.65"); });

// --- what programs use today, 4 callbacks, 2 threads ----------------------------------------------

struct FirstRefusal {
  using result_type = int;
  template <class Iterator>
  int operator()(Iterator at, Iterator end) const {
    for (; at != end; ++at) {
      if (int result = *at) return result;
    }
    return 0;
  }
};

void against_rival(const char* name, const char* rival, const char* goal,
                   const std::function<void(std::uint64_t)>& loop_of_rival) {
  load_all();
  bench::Pair p = bench::paired_throughput(2, ours<4>, 2, loop_of_rival);
  bench::report({name, p.ours / 1e6, "M/s", rival, p.rival / 1e6, p.ratio, goal});
}

bench::Registered signals2("hook.signals2", [] {
  static boost::signals2::signal<int(Context*), FirstRefusal> signal;
  if (signal.empty()) {
    for (int k = 0; k < 4; ++k) signal.connect(direct_callbacks[k]);
  }
  against_rival("hook.signals2", "boost::signals2", ">= 120",
                [](std::uint64_t n) { loop(n, [](Context* c) { return signal(c); }); });
});

bench::Registered shared_mutex("hook.shared_mutex", [] {
  static std::shared_mutex mutex;
  static std::vector<std::function<int(Context*)>> callbacks(direct_callbacks,
                                                             direct_callbacks + 4);
  against_rival("hook.shared_mutex", "shared_mutex + std::function", ">= 13", [](std::uint64_t n) {
    loop(n, [](Context* c) {
      std::shared_lock lock(mutex);
      for (const auto& callback : callbacks) {
        if (int result = callback(c)) return result;
      }
      return 0;
    });
  });
});

bench::Registered shared_refcount("hook.shared_refcount", [] {
  struct alignas(64) Counted {
    std::atomic<long> users{1};
    Callback callback;
  };
  static Counted counted[4];
  for (int k = 0; k < 4; ++k) counted[k].callback = direct_callbacks[k];
  against_rival("hook.shared_refcount", "shared reference count", ">= 50", [](std::uint64_t n) {
    loop(n, [](Context* c) {
      for (Counted& one : counted) {
        // Taken only while it is not zero, as a module's reference must be.
        long users = one.users.load(std::memory_order_relaxed);
        do {
          if (users <= 0) break;
        } while (!one.users.compare_exchange_weak(users, users + 1, std::memory_order_acquire,
                                                  std::memory_order_relaxed));
        int result = one.callback(c);
        one.users.fetch_sub(1, std::memory_order_release);
        if (result != 0) return result;
      }
      return 0;
    });
  });
});

bench::Registered threads2("hook.threads2", [] {
  load_all();
  bench::Pair p = bench::paired_throughput(2, ours<4>, 1, ours<4>);
  bench::report(
      {"hook.threads2", p.ours / 1e6, "M/s", "1 thread", p.rival / 1e6, p.ratio, ">= 1.95"});
});

}  // namespace
