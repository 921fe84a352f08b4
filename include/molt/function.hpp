// function.hpp - callbacks on any function of a program that was built without Molt.
//
//     #include <molt/function.hpp>
//
//     struct open_file : molt::function<int(const char* path, int flags, unsigned mode)> {
//       static constexpr const char* name = "libc.so.6:open64";       // ":main" is the program's
//       static constexpr const char* after = "libc.so.6:open64:after";
//     };
//
//     static void no_dotfiles(molt::call<open_file>& call) {
//       if (call.argument<0>()[0] == '.') call.answer(-1, EACCES);    // open64 is not entered
//     }
//     static void count(molt::call<open_file>& call) { if (call.result() < 0) ++failures; }
//
//     MOLT_MODULE("no_dotfiles", "1.0", "Apache-2.0", "...")
//     MOLT_BEFORE(open_file, no_dotfiles)
//     MOLT_AFTER(open_file, count)
//
// The types are the function's own: nobody checks them but the other modules that hook it. A
// callback that throws counts as one that did nothing, unless the function's declaration has
//
//       static constexpr auto on_exception = molt::refuse(-1, EACCES);
//
// molt/call.h says what is called when.
#pragma once

#include <molt/cxx20.hpp>

#include <molt/call.h>
#include <molt/module.hpp>

#include <cstring>
#include <tuple>

namespace molt {

struct let_pass_t {};
inline constexpr let_pass_t let_pass{};
template <class R>
struct refuse {
  R result;
  int error;
  constexpr refuse(R result_, int error_) : result(result_), error(error_) {}
};

template <class F>
struct function;
template <class R, class... Args>
struct function<R(Args...)> {
  template <class T>
  static constexpr bool is_plain = std::is_arithmetic_v<T> || std::is_pointer_v<T> ||
                                   std::is_enum_v<T> || std::is_lvalue_reference_v<T>;
  static_assert((is_plain<Args> && ...) && (std::is_void_v<R> || is_plain<R>),
                "structures by value are not handed on");
  static_assert(((sizeof(Args) <= 8) && ...), "nor are long double and 128-bit integers");
  using signature = R(Args...);
  using result = R;
  using arguments = std::tuple<Args...>;
  static constexpr auto on_exception = let_pass;
};

// One call of Function, as a callback sees it.
template <class Function>
class call : private molt_call {
  using Arguments = typename Function::arguments;
  using R = typename Function::result;
  template <std::size_t K>
  using type = std::tuple_element_t<K, Arguments>;
  template <std::size_t K>
  static constexpr bool is_floating = std::is_floating_point_v<type<K>>;
  template <std::size_t K, std::size_t... Before>
  static constexpr std::size_t floats_before(std::index_sequence<Before...>) {
    return (std::size_t{0} + ... + std::size_t{is_floating<Before>});
  }
  template <std::size_t K>
  static constexpr std::size_t floats = floats_before<K>(std::make_index_sequence<K>{});
  // How many of the first K are on the stack.
  template <std::size_t K>
  static constexpr std::size_t on_stack = (floats<K> > 8 ? floats<K> - 8 : 0) +
                                          (K - floats<K> > 6 ? K - floats<K> - 6 : 0);

 public:
  template <std::size_t K>
  type<K> argument() const {
    const void* at;
    if constexpr (is_floating<K>) {
      at = floats<K> < 8 ? static_cast<const void*>(&this->molt_call::floats[floats<K> % 8])
                         : &stack[on_stack<K>];
    } else {
      at = K - floats<K> < 6 ? &integers[(K - floats<K>) % 6] : &stack[on_stack<K>];
    }
    std::remove_reference_t<type<K>>* pointer;
    if constexpr (std::is_lvalue_reference_v<type<K>>) {
      std::memcpy(&pointer, at, sizeof pointer);
      return *pointer;
    } else {
      type<K> value;
      std::memcpy(&value, at, sizeof value);
      return value;
    }
  }

  // In `after`: what the function returned, or a later value.
  R result() const requires(!std::is_void_v<R>) {
    R value;
    if constexpr (std::is_floating_point_v<R>) {
      std::memcpy(&value, &float_result, sizeof value);
    } else {
      std::memcpy(&value, &this->molt_call::result, sizeof value);
    }
    return value;
  }
  template <class T>
  void set_result(T given) requires(!std::is_void_v<R>) {
    const R value = static_cast<R>(given);
    if constexpr (std::is_floating_point_v<R>) {
      std::memcpy(&float_result, &value, sizeof value);
    } else if constexpr (std::is_integral_v<R>) {
      // As a function's result is extended.
      this->molt_call::result = static_cast<std::uint64_t>(static_cast<std::int64_t>(value));
    } else {
      std::memcpy(&this->molt_call::result, &value, sizeof value);
    }
  }

  // In `before`: the caller gets this, and the function is not entered.
  template <class T>
  void answer(T value, int with_errno = 0) requires(!std::is_void_v<R>) {
    set_result(value);
    error = with_errno;
    is_answered = 1;
  }
  void answer() requires(std::is_void_v<R>) { is_answered = 1; }

 private:
  template <class, auto>
  friend struct detail_function_wrapper;
};

template <class Function, auto f>
struct detail_function_wrapper {
  static int before(molt_call* raw) {
    auto& c = *static_cast<call<Function>*>(raw);
    c.is_answered = 0;
    detail::guarded(
        [&] { return f(c), 0; },
        [&](const char* what) {
          molt_log(&molt_this_module, "%s: a callback threw %s", Function::name,
                   what ? what : "an unknown exception");
          if constexpr (!std::is_same_v<std::remove_cv_t<decltype(Function::on_exception)>,
                                        let_pass_t>) {
            c.answer(Function::on_exception.result, Function::on_exception.error);
          }
          return 0;
        });
    return static_cast<int>(c.is_answered);
  }
  static void after(molt_call* raw) {
    auto& c = *static_cast<call<Function>*>(raw);
    detail::guarded([&] { return f(c), 0; },
                    [&](const char* what) {
                      molt_log(&molt_this_module, "%s: a callback threw %s", Function::after,
                               what ? what : "an unknown exception");
                      return 0;
                    });
  }
};

}  // namespace molt

// Optional, behind the callback: an order and flags, as for MOLT_HOOK.
#define MOLT_BEFORE(function_, callback_, ...)                                                   \
  MOLT_ON_FUNCTION_(function_, function_::name,                                                  \
                    (&molt::detail_function_wrapper<function_, callback_>::before), __COUNTER__, \
                    ##__VA_ARGS__)
#define MOLT_AFTER(function_, callback_, ...)                                                   \
  MOLT_ON_FUNCTION_(function_, function_::after,                                                \
                    (&molt::detail_function_wrapper<function_, callback_>::after), __COUNTER__, \
                    ##__VA_ARGS__)
#define MOLT_ON_FUNCTION_(function_, name_, fn_, id_, ...) \
  MOLT_ON_FUNCTION2_(function_, name_, fn_, id_, MOLT_CAT_(molt_callback_, id_), ##__VA_ARGS__)
#define MOLT_ON_FUNCTION2_(function_, name_, fn_, id_, var_, ...)                 \
  MOLT_CXX_NOTE_("hook=", name_, " ", molt::signature_of<function_::signature>()) \
  namespace {                                                                     \
  extern molt_callback var_;                                                      \
  MOLT_ITEM_("molt_callbacks")                                                    \
  molt_callback var_ = {name_,                                                    \
                        molt::signature_of<function_::signature>(),               \
                        molt::fingerprint_of<function_::signature>(),             \
                        reinterpret_cast<molt_fn>(fn_),                           \
                        molt::detail::order_of(__VA_ARGS__),                      \
                        molt::detail::flags_of(__VA_ARGS__),                      \
                        id_,                                                      \
                        0,                                                        \
                        nullptr};                                                 \
  }
