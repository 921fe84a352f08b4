// hook_point.hpp - what a host and its modules share: the declaration of hook points.
//
//     struct open_point : molt::hook_point<int(const char* path, int flags)> {
//       static constexpr const char* name = "files.open";
//       static constexpr int default_result = 0;              // nobody objects
//       static constexpr auto on_exception = molt::fail_closed(-EACCES);
//     };
//
// Name and signature together are the identity of a hook: a module whose declaration has another
// signature is refused when it is loaded. Put such declarations into a header of their own that
// both sides include. Everything here is evaluated at compile time.
#pragma once

#include <molt/cxx20.hpp>

#include <molt/molt.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

namespace molt {

// What a callback that throws counts as.
struct fail_open_t {};
template <class R>
struct fail_closed_t {
  R result;
};
// As if the callback had returned the hook's default result.
inline constexpr fail_open_t fail_open{};
// As if it had returned `result`.
template <class R>
constexpr fail_closed_t<R> fail_closed(R result) {
  return {result};
}

enum class combine : std::uint32_t {
  all = MOLT_COMBINE_ALL,                // void hooks
  first = MOLT_COMBINE_FIRST,            // the first result that differs from the default
  unanimous = MOLT_COMBINE_UNANIMOUS,    // any result <= 0 means 0, else the default
  last = MOLT_COMBINE_LAST,              // last non-default; stops at one that is also non-zero
  only_first = MOLT_COMBINE_ONLY_FIRST,  // only the first callback is asked
  by_name = MOLT_COMBINE_BY_NAME,        // the callback of a named module
};

namespace detail {

template <std::size_t N>
struct text {
  char data[N + 1] = {};
  constexpr std::string_view view() const { return {data, N}; }
};

// The compiler's spelling of T, in gcc's and clang's common form: without white space.
template <class T>
constexpr auto raw_name() {
  std::string_view all = __PRETTY_FUNCTION__;
  std::size_t from = all.find("T = ") + 4;
  std::size_t to = all.find_first_of(";]", from);
  return all.substr(from, to - from);
}

// Longest signature text in bytes; longer ones do not compile.
inline constexpr std::size_t signature_max = 1000;

struct builder {
  char data[signature_max + 1] = {};
  std::size_t size = 0;
  constexpr void add(char c) { data[size++] = c; }
  constexpr void add(std::string_view s) {
    for (char c : s) add(c);
  }
  constexpr void number(std::size_t n) {
    if (n >= 10) number(n / 10);
    add(static_cast<char>('0' + n % 10));
  }
};

template <class T>
constexpr void add_type(builder& out);

template <class... Ts>
constexpr void add_list(builder& out) {
  bool first = true;
  ((first ? void(first = false) : out.add(','), add_type<Ts>(out)), ...);
}

template <class F>
struct function_parts;
template <class R, class... Args>
struct function_parts<R(Args...)> {
  using result = R;
  static constexpr void add(builder& out) {
    add_type<R>(out);
    out.add('(');
    add_list<Args...>(out);
    out.add(')');
  }
};

template <class T>
constexpr bool is_plain_function = false;
template <class R, class... Args>
constexpr bool is_plain_function<R(Args...)> = true;

// Fundamental types are named by kind and width, so that gcc and clang agree; class types by name,
// and by value also with size and alignment: a changed layout is another signature.
template <class T>
constexpr void add_type(builder& out) {
  if constexpr (std::is_lvalue_reference_v<T>) {
    add_type<std::remove_reference_t<T>>(out);
    out.add('&');
  } else if constexpr (std::is_pointer_v<T>) {
    add_type<std::remove_pointer_t<T>>(out);
    out.add('*');
  } else if constexpr (std::is_const_v<T>) {
    out.add("const ");
    add_type<std::remove_const_t<T>>(out);
  } else if constexpr (std::is_void_v<T>) {
    out.add("void");
  } else if constexpr (std::is_same_v<T, bool>) {
    out.add("bool");
  } else if constexpr (std::is_same_v<T, char>) {
    out.add("char");
  } else if constexpr (std::is_integral_v<T>) {
    out.add(std::is_signed_v<T> ? 'i' : 'u');
    out.number(sizeof(T) * 8);
  } else if constexpr (std::is_floating_point_v<T>) {
    out.add('f');
    out.number(sizeof(T) * 8);
  } else if constexpr (is_plain_function<T>) {
    function_parts<T>::add(out);
  } else {
    for (char c : raw_name<T>()) {
      if (c != ' ') out.add(c);
    }
  }
}

template <class T>
constexpr void add_argument(builder& out) {
  add_type<T>(out);
  if constexpr (std::is_class_v<T> || std::is_union_v<T>) {
    out.add('{');
    out.number(sizeof(T));
    out.add(':');
    out.number(alignof(T));
    out.add('}');
  }
}

template <class F>
struct signature_builder;
template <class R, class... Args>
struct signature_builder<R(Args...)> {
  static constexpr builder make() {
    builder out;
    add_argument<R>(out);
    out.add('(');
    bool first = true;
    ((first ? void(first = false) : out.add(','), add_argument<Args>(out)), ...);
    out.add(')');
    return out;
  }
};
// An object that is exported or imported rather than a function.
template <class T>
requires(!std::is_function_v<T>) struct signature_builder<T> {
  static constexpr builder make() {
    builder out;
    add_argument<T>(out);
    return out;
  }
};

template <class F>
struct signature_store {
  static constexpr builder built = signature_builder<F>::make();
  static constexpr auto value = [] {
    text<built.size> out;
    for (std::size_t i = 0; i < built.size; ++i) out.data[i] = built.data[i];
    return out;
  }();
};

constexpr std::uint64_t fingerprint(std::string_view signature) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (char c : signature) {
    if (c == ' ') continue;
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  }
  return hash;
}

}  // namespace detail

// The canonical text of a function's or object's type; the same with gcc and clang.
template <class F>
constexpr const char* signature_of() {
  return detail::signature_store<F>::value.data;
}
template <class F>
constexpr std::uint64_t fingerprint_of() {
  return detail::fingerprint(detail::signature_store<F>::value.view());
}

// Base of a hook point's declaration. The derived type gives `name`, and may give
//   default_result   what "no opinion" is; needed unless the result is void or value-initialised
//   on_exception     molt::fail_open (the default) or molt::fail_closed(result)
//   rule             a molt::combine; without it `all` for void, else `first`
//   mostly_empty     which way is laid out straight: past the empty hook (true, the default), which
//                    then costs a branch that is not taken; or into a callback (false), which saves
//                    two jumps there and costs one at an empty hook. For the few hooks that are hot
//                    and nearly always have callbacks.
//   description      one line for `molt hook list`
template <class F>
struct hook_point;
template <class R, class... Args>
struct hook_point<R(Args...)> {
  static_assert(!std::is_reference_v<R>, "a hook's result is a value");
  static_assert((!std::is_rvalue_reference_v<Args> && ...),
                "several callbacks cannot all take the same rvalue");
  using signature = R(Args...);
  using result = R;
  static constexpr const char* description = "";
  static constexpr bool mostly_empty = true;
  static constexpr auto on_exception = fail_open;
};

}  // namespace molt
