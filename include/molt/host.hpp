// host.hpp - for programs that declare hook points and let modules attach to them.
//
//     molt::hook<open_point> on_open;          // static storage; open_point: see hook_point.hpp
//     ...
//     if (int error = on_open(path, flags)) return error;
//
// Costs: an empty hook is one load and one predicted branch. A callback costs an indirect call and
// about 0.3 ns of protection. No locks, no atomic read-modify-write; callbacks may sleep, throw,
// be cancelled, and call hooks. Dispatch is inlined where it is written: for a hook that is called
// from many cold places, wrap it in a function of your own.
//
// A callback that leaves by longjmp keeps its module pinned until the thread ends.
#pragma once

#include <molt/hook_point.hpp>

#include <cerrno>
#include <utility>

namespace molt {

namespace detail {

template <class Point>
concept has_default = requires { Point::default_result; };
template <class Point>
concept has_rule = requires { Point::rule; };

template <class Point>
constexpr combine rule_of() {
  if constexpr (has_rule<Point>) {
    return Point::rule;
  } else if constexpr (std::is_void_v<typename Point::result>) {
    return combine::all;
  } else {
    return combine::first;
  }
}

template <class Point>
constexpr auto default_of() {
  using R = typename Point::result;
  if constexpr (has_default<Point>) {
    return static_cast<R>(Point::default_result);
  } else {
    return R{};
  }
}

template <class R>
constexpr bool is_fail_open(fail_open_t) {
  return true;
}
template <class R, class V>
constexpr bool is_fail_open(fail_closed_t<V>) {
  return false;
}
template <class R>
constexpr R exception_result(fail_open_t, R standard) {
  return standard;
}
template <class R, class V>
constexpr R exception_result(fail_closed_t<V> closed, R) {
  return static_cast<R>(closed.result);
}

// Results that the core can hand to a module's wrapper by address.
template <class Point, class R = typename Point::result>
struct results {
  static inline const R standard = default_of<Point>();
  static inline const R exceptional =
      exception_result<R>(Point::on_exception, default_of<Point>());
  static constexpr const void* standard_at() { return &standard; }
  static constexpr const void* exceptional_at() { return &exceptional; }
  static constexpr std::uint32_t size = sizeof(R);
};
template <class Point>
struct results<Point, void> {
  static constexpr const void* standard_at() { return nullptr; }
  static constexpr const void* exceptional_at() { return nullptr; }
  static constexpr std::uint32_t size = 0;
};

template <class Point>
inline const molt_hook_info info_of = {
    sizeof(molt_hook_info),
    static_cast<std::uint32_t>(rule_of<Point>()),
    is_fail_open<typename Point::result>(Point::on_exception) ? MOLT_FAIL_OPEN : MOLT_FAIL_CLOSED,
    results<Point>::size,
    Point::name,
    signature_of<typename Point::signature>(),
    fingerprint_of<typename Point::signature>(),
    results<Point>::standard_at(),
    results<Point>::exceptional_at(),
    Point::description,
};

// The caller's half of the pairing described in molt.h ("Order"); its partner is the writer's
// membarrier. ThreadSanitizer knows no membarrier: there both halves are sequentially consistent.
[[gnu::always_inline]] inline void publish_frame(const molt_entry** frame,
                                                 const molt_entry* entry) {
#if defined(__SANITIZE_THREAD__)
  __atomic_exchange_n(frame, entry, __ATOMIC_SEQ_CST);
#else
  __atomic_store_n(frame, entry, __ATOMIC_RELAXED);
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
#endif
}
#if defined(__SANITIZE_THREAD__)
inline constexpr int validate_order = __ATOMIC_SEQ_CST;
#else
inline constexpr int validate_order = __ATOMIC_ACQUIRE;
#endif

// One nested hook call of this thread; leaves the frame also when unwound through.
class frame_scope {
 public:
  [[gnu::always_inline]] frame_scope() {
    molt_tls& tls = molt_tls_self;
    frame_ = tls.top;
    if (frame_ == tls.end) [[unlikely]] {
      frame_ = molt_frame_extend();
      extended_ = true;
    } else {
      tls.top = frame_ + 1;
    }
  }
  [[gnu::always_inline]] ~frame_scope() {
    if (extended_) [[unlikely]] {
      molt_frame_retract(frame_);
      return;
    }
    __atomic_store_n(frame_, nullptr, __ATOMIC_RELEASE);
    molt_tls_self.top = frame_;
  }
  frame_scope(const frame_scope&) = delete;
  frame_scope& operator=(const frame_scope&) = delete;
  const molt_entry** get() const { return frame_; }

 private:
  const molt_entry** frame_;
  bool extended_ = false;
};

struct walk_scope {
  molt_walk walk;
  ~walk_scope() { molt_walk_end(&walk); }
};

// How arguments reach the cold path: small ones by value, so that the hot path keeps them in
// registers and an empty hook does not spill them.
template <class T>
using cold_argument =
    std::conditional_t<std::is_reference_v<T> || (std::is_trivially_copyable_v<T> && sizeof(T) <= 16),
                       T, T&>;

}  // namespace detail

template <class Point, class F = typename Point::signature>
class hook;

// A hook point of this host. Construct it once, with static storage, before the first call; several
// objects of the same Point (one in each library of a program) are one hook.
template <class Point, class R, class... Args>
class hook<Point, R(Args...)> {
 public:
  hook() { registered_ = molt_hook_register(&hook_); }
  ~hook() {
    if (registered_ == 0) molt_hook_unregister(&hook_);
  }
  hook(const hook&) = delete;
  hook& operator=(const hook&) = delete;

  // 0, or why the hook stays empty (another hook of that name has another signature: -EEXIST).
  int registered() const { return registered_; }

  // Calls the attached callbacks in order and combines their results by the point's rule. Never
  // blocks on its own behalf, save while the very module it reaches hands its state to a
  // successor. Safe in signal handlers.
  [[gnu::always_inline]] R operator()(Args... args)
    requires(detail::rule_of<Point>() != combine::by_name)
  {
    const molt_chain* chain = __atomic_load_n(&hook_.chain, __ATOMIC_ACQUIRE);
    if (chain == nullptr) [[likely]] {
      if constexpr (std::is_void_v<R>) {
        return;
      } else {
        return detail::default_of<Point>();
      }
    }
    return dispatch(chain, args...);
  }

  // Asks only the callback of `module`; the default result if it has none.
  R call_named(const char* module, Args... args) {
    detail::walk_scope scope;
    molt_walk_begin_named(&scope.walk, &hook_, module);
    return finish(scope.walk, outcome{}, args...);
  }

  // For callbacks that may end on another thread than they began on:
  //     auto walk = on_request.walk_async();
  //     while (auto* callback = walk.next()) {
  //       if (int error = co_await callback(request)) co_return error;
  //     }
  // The object may move between threads, not be used by two at once.
  class async_walk {
   public:
    explicit async_walk(molt_hook* hook) { error_ = molt_async_begin(&walk_, hook); }
    ~async_walk() { molt_async_end(&walk_); }
    async_walk(const async_walk&) = delete;
    async_walk& operator=(const async_walk&) = delete;
    using function = R(Args...);
    // The next callback, or NULL at the end. The previous one must have ended.
    function* next() { return reinterpret_cast<function*>(molt_async_next(&walk_)); }
    // 0, or -ENOMEM: the walk is empty for want of memory.
    int error() const { return error_; }

   private:
    molt_async_walk walk_;
    int error_;
  };
  async_walk walk_async() { return async_walk(&hook_); }

  bool empty() const { return __atomic_load_n(&hook_.chain, __ATOMIC_RELAXED) == nullptr; }

 private:
  static constexpr combine rule = detail::rule_of<Point>();
  static constexpr std::size_t unrolled = rule == combine::only_first ? 1 : 16;
  using function = R(Args...);

  // What is known of the combined result so far.
  struct nothing {};
  struct outcome {
    [[no_unique_address]] std::conditional_t<std::is_void_v<R>, nothing, R> value = start();
    static constexpr auto start() {
      if constexpr (std::is_void_v<R>) {
        return nothing{};
      } else {
        return detail::default_of<Point>();
      }
    }
  };

  // Calls one callback; true if the walk is over.
  [[gnu::always_inline]] static bool call(function* fn, outcome& out, Args&... args) {
    if constexpr (std::is_void_v<R>) {
      fn(args...);
      return false;
    } else if constexpr (rule == combine::first) {
      out.value = fn(args...);
      return !(out.value == detail::default_of<Point>());
    } else if constexpr (rule == combine::unanimous) {
      if (fn(args...) > R{}) return false;
      out.value = R{};
      return true;
    } else if constexpr (rule == combine::last) {
      R result = fn(args...);
      if (result == detail::default_of<Point>()) return false;
      out.value = result;
      return !(result == R{});
    } else {
      out.value = fn(args...);
      return true;
    }
  }

  enum class step_result { next, end, changed };

  // Entry K of the chain: invariant I1 holds from the moment that the validation succeeds.
  [[gnu::always_inline]] step_result step(std::size_t k, const molt_chain* chain,
                                          std::uint64_t gen, const molt_entry** frame,
                                          outcome& out, Args&... args) {
    const molt_entry* entry = &chain->entries[k];
    auto* fn = reinterpret_cast<function*>(__atomic_load_n(&entry->fn, __ATOMIC_RELAXED));
    if (fn == nullptr) return step_result::end;
    detail::publish_frame(frame, entry);
#ifndef MOLT_MUTATE_NO_VALIDATE  // tests break the protocol on purpose, and must see it
    if (__atomic_load_n(&hook_.gen, detail::validate_order) != gen) [[unlikely]] {
      return step_result::changed;
    }
#endif
    return call(fn, out, args...) ? step_result::end : step_result::next;
  }

  template <std::size_t... K>
  [[gnu::always_inline]] step_result steps(std::index_sequence<K...>, std::size_t& done,
                                           const molt_chain* chain, std::uint64_t gen,
                                           const molt_entry** frame, outcome& out,
                                           Args&... args) {
    step_result result = step_result::next;
    (void)((result = step(K, chain, gen, frame, out, args...), done = K,
            result == step_result::next) &&
           ...);
    return result;
  }

  [[gnu::always_inline]] R dispatch(const molt_chain* chain, Args&... args) {
    detail::frame_scope frame;
    outcome out;
    std::uint64_t gen = __atomic_load_n(&chain->gen, __ATOMIC_ACQUIRE);
    std::size_t at = 0;
    step_result result =
        steps(std::make_index_sequence<unrolled>{}, at, chain, gen, frame.get(), out, args...);
    if (result == step_result::next && rule != combine::only_first) [[unlikely]] {
      do {
        result = step(++at, chain, gen, frame.get(), out, args...);
      } while (result == step_result::next);
    }
    if (result == step_result::changed) [[unlikely]] {
      return changed(chain, at, out, args...);
    }
    if constexpr (!std::is_void_v<R>) return out.value;
  }

  // The chain was changed before entry `at` of it: go on by the rules of the general walk.
  [[gnu::noinline, gnu::cold]] R changed(const molt_chain* chain, std::size_t at, outcome out,
                                         detail::cold_argument<Args>... args) {
    detail::walk_scope scope;
    molt_walk_resume(&scope.walk, &hook_, chain, static_cast<std::uint32_t>(at));
    return finish(scope.walk, out, args...);
  }

  R finish(molt_walk& walk, outcome out, Args&... args) {
    while (auto* fn = reinterpret_cast<function*>(molt_walk_next(&walk))) {
      if (call(fn, out, args...)) break;
    }
    if constexpr (!std::is_void_v<R>) return out.value;
  }

  molt_hook hook_ = {nullptr, 0, nullptr, &detail::info_of<Point>};
  int registered_;
};

// Starts the runtime's control side; see molt_start().
inline int start(const char* name = nullptr) {
  molt_options options = {sizeof(molt_options), name, nullptr, nullptr, 0};
  return molt_start(&options);
}

}  // namespace molt
