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

#include <molt/cxx20.hpp>

#include <molt/hook_point.hpp>

#include <cerrno>
#include <utility>

namespace molt {

namespace detail {

template <class Point>
concept has_default = requires {
  Point::default_result;
};
template <class Point>
concept has_rule = requires {
  Point::rule;
};

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
  static inline const R exceptional = exception_result<R>(Point::on_exception, default_of<Point>());
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
  (void)__atomic_exchange_n(frame, entry, __ATOMIC_SEQ_CST);
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

// One nested hook call of this thread, in a record that has room for it; leaves the frame also when
// unwound through.
class frame_scope {
 public:
  [[gnu::always_inline]] explicit frame_scope(const molt_entry** frame) : frame_(frame) {
    __atomic_store_n(&molt_tls_self.top, frame + 1, __ATOMIC_RELAXED);
    // Before the frame is used: a signal handler's calls take the frames above it.
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
  }
  [[gnu::always_inline]] ~frame_scope() {
    __atomic_store_n(frame_, nullptr, __ATOMIC_RELEASE);
    molt_tls_self.top = frame_;
  }
  frame_scope(const frame_scope&) = delete;
  frame_scope& operator=(const frame_scope&) = delete;

 private:
  const molt_entry** frame_;
};

// The same where there is no room yet: the first hook call of a thread, or a deeply nested one.
class extended_frame_scope {
 public:
  extended_frame_scope() : frame_(molt_frame_extend()) {}
  ~extended_frame_scope() { molt_frame_retract(frame_); }
  extended_frame_scope(const extended_frame_scope&) = delete;
  extended_frame_scope& operator=(const extended_frame_scope&) = delete;
  const molt_entry** get() const { return frame_; }

 private:
  const molt_entry** frame_;
};

[[gnu::always_inline]] inline bool likely(bool condition) {
  return __builtin_expect(condition, true);
}

struct walk_scope {
  molt_walk walk;
  ~walk_scope() { molt_walk_end(&walk); }
};

// How arguments reach the cold path: small ones by value, so that the hot path keeps them in
// registers and an empty hook does not spill them.
template <class T>
using cold_argument = std::conditional_t<
    std::is_reference_v<T> || (std::is_trivially_copyable_v<T> && sizeof(T) <= 16), T, T&>;

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
  [[gnu::always_inline]] R operator()(Args... args) requires(detail::rule_of<Point>() !=
                                                             combine::by_name) {
    const molt_chain* chain = __atomic_load_n(&hook_.chain, __ATOMIC_ACQUIRE);
    if constexpr (Point::mostly_empty) {
      if (detail::likely(chain == nullptr)) return outcome{}.get();
    } else {
      if (chain == nullptr) return outcome{}.get();
    }
    return dispatch(chain, args...);
  }

  // Asks only the callback of `module`; the default result if it has none.
  R call_named(const char* module, Args... args) {
    detail::walk_scope scope;
    molt_walk_begin_named(&scope.walk, &hook_, module);
    outcome out;
    finish(scope.walk, out, args...);
    return out.get();
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
  static constexpr std::size_t unrolled = 16;
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
    [[gnu::always_inline]] R get() const {
      if constexpr (!std::is_void_v<R>) return value;
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

  [[gnu::always_inline]] static function* callback(const molt_chain* chain, std::size_t k) {
    return reinterpret_cast<function*>(__atomic_load_n(&chain->entries[k].fn, __ATOMIC_RELAXED));
  }

  // Calls `fn`, the callback of entry `k`; true if the walk is over. Invariant I1 holds from the
  // moment that the validation succeeds.
  [[gnu::always_inline]] bool step(const molt_chain* chain, std::size_t k, function* fn,
                                   [[maybe_unused]] std::uint64_t gen, const molt_entry** frame,
                                   outcome& out, Args&... args) {
    detail::publish_frame(frame, &chain->entries[k]);
#ifndef MOLT_MUTATE_NO_VALIDATE  // tests break the protocol on purpose, and must see it
    if (__atomic_load_n(&hook_.gen, detail::validate_order) != gen) [[unlikely]] {
      out = changed(chain, frame, out, args...);
      return true;
    }
#endif
    return call(fn, out, args...);
  }

  // Entries 1 + K...; `fn` is the callback of entry 1. True if there are more than those.
  template <std::size_t... K>
  [[gnu::always_inline]] bool steps(std::index_sequence<K...>, const molt_chain* chain,
                                    function* fn, std::uint64_t gen, const molt_entry** frame,
                                    outcome& out, Args&... args) {
    return ((detail::likely(!step(chain, 1 + K, fn, gen, frame, out, args...)) &&
             detail::likely((fn = callback(chain, 2 + K)) != nullptr)) &&
            ...);
  }

  // The shape of the code is what this costs: calling and returning take four cycles a callback, and
  // the protection hides in their shadow, but every jump that is taken and every cache line of code
  // that is passed adds about one. So the way through a single callback is straight-line code of
  // less than two cache lines with no jump taken within it, and hook_point's `mostly_empty` says
  // whether there is a jump around it or to it; further callbacks stand, unrolled, at the function's
  // end: one jump there, one back; and whatever is rare is out of line. `./run bench hook` measures
  // it.
  [[gnu::always_inline]] R dispatch(const molt_chain* chain, Args&... args) {
    // end first: a signal handler's first hook call may set both in between.
    const molt_entry** end = __atomic_load_n(&molt_tls_self.end, __ATOMIC_RELAXED);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    const molt_entry** frame = __atomic_load_n(&molt_tls_self.top, __ATOMIC_RELAXED);
    if (frame == end) [[unlikely]]
      return dispatch_extended(chain, args...).get();
    outcome out;
    {
      detail::frame_scope scope(frame);
      std::uint64_t gen = __atomic_load_n(&chain->gen, __ATOMIC_ACQUIRE);
      // A chain that was ever published has an entry: the first callback is never NULL.
      if (detail::likely(!step(chain, 0, callback(chain, 0), gen, frame, out, args...))) {
        function* fn = rule == combine::only_first ? nullptr : callback(chain, 1);
        if (fn != nullptr) [[unlikely]] {
          if (steps(std::make_index_sequence<unrolled - 1>{}, chain, fn, gen, frame, out, args...))
              [[unlikely]] {
            rest(chain, unrolled, gen, frame, out, args...);
          }
        }
      }
    }
    return out.get();
  }

  // Entries from `k` on.
  [[gnu::always_inline]] void rest(const molt_chain* chain, std::size_t k, std::uint64_t gen,
                                   const molt_entry** frame, outcome& out, Args&... args) {
    while (function* fn = callback(chain, k)) {
      if (step(chain, k, fn, gen, frame, out, args...) || rule == combine::only_first) break;
      ++k;
    }
  }

  [[gnu::noinline, gnu::cold]] outcome dispatch_extended(const molt_chain* chain,
                                                         detail::cold_argument<Args>... args) {
    detail::extended_frame_scope scope;
    outcome out;
    std::uint64_t gen = __atomic_load_n(&chain->gen, __ATOMIC_ACQUIRE);
    rest(chain, 0, gen, scope.get(), out, args...);
    return out;
  }

  // The chain was changed before the entry that `frame` points at: go on by the rules of the general
  // walk.
  [[gnu::noinline, gnu::cold]] outcome changed(const molt_chain* chain, const molt_entry** frame,
                                               outcome out, detail::cold_argument<Args>... args) {
    detail::walk_scope scope;
    molt_walk_resume(&scope.walk, &hook_, chain,
                     static_cast<std::uint32_t>(*frame - chain->entries));
    finish(scope.walk, out, args...);
    return out;
  }

  void finish(molt_walk& walk, outcome& out, Args&... args) {
    while (auto* fn = reinterpret_cast<function*>(molt_walk_next(&walk))) {
      if (call(fn, out, args...)) break;
    }
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
