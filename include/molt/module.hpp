// module.hpp - for modules written in C++.
//
//     #include <molt/module.hpp>
//     #include "files.hpp"                        // struct open_point : molt::hook_point<...>
//
//     MOLT_PARAM(int, limit, 10, "opens allowed per client", MOLT_WRITABLE)
//
//     static int count(const char* path, int flags) { ... return limit.get() < n ? -EMFILE : 0; }
//
//     MOLT_MODULE("limiter", "1.0", "Apache-2.0", "limits opens per client")
//     MOLT_HOOK(open_point, count)                // or MOLT_HOOK(open_point, count, MOLT_ORDER_FIRST)
//     MOLT_INIT(start)                            // optional: int start(); 0 or negative errno
//     MOLT_EXIT(finish)                           // optional: void finish();
//
// Build with molt_add_module() (CMake): it sets the flags that a module needs in order to be
// unloadable, and names what would keep it in memory.
//
// A module owes nothing for safety: no counting, no locking, no quiescent states. Its callbacks run
// on the host's threads, many at a time. An exception that leaves a callback, init, save, restore or
// a parameter's setter is stopped here and logged.
#pragma once

#include <molt/cxx20.hpp>

#include <molt/module.h>
#include <molt/hook_point.hpp>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <exception>
#include <limits>
#include <mutex>
#include <string>
#include <utility>

#if defined(__cpp_exceptions)
#include <cxxabi.h>
#endif

namespace molt {

namespace detail {

// Runs f; an exception becomes `otherwise(what)`. A cancelled thread's unwinding passes through: it has
// no object, so the reference to it is a null one. (One check for both; either would see it.)
template <class F, class Otherwise>
[[gnu::always_inline]] __attribute__((no_sanitize("null", "alignment"))) inline auto guarded(
    F&& f, Otherwise&& otherwise) {
#if defined(__cpp_exceptions)
  try {
    return f();
  } catch (const std::exception& e) {
    return otherwise(e.what());
  } catch (abi::__forced_unwind&) {
    throw;
  } catch (...) {
    return otherwise(static_cast<const char*>(nullptr));
  }
#else
  return f();
#endif
}

template <auto f, class... Args>
int guarded_call(const char* where, Args... args) {
  return guarded([&]() -> int { return f(args...); },
                 [&](const char* what) -> int {
                   molt_log(&molt_this_module, "%s threw %s", where,
                            what ? what : "an unknown exception");
                   return -ECANCELED;
                 });
}

// The function that is really attached for a user's callback `f`.
template <class F, auto f, const molt_callback* self>
struct wrapper;
template <class R, class... Args, auto f, const molt_callback* self>
struct wrapper<R(Args...), f, self> {
  static R call(Args... args) {
    if constexpr (noexcept(f(args...))) {
      return f(args...);
    } else {
      return guarded([&]() -> R { return f(std::forward<Args>(args)...); },
                     [&](const char* what) -> R {
                       const void* result = molt_callback_failed(self, what);
                       if constexpr (!std::is_void_v<R>) return *static_cast<const R*>(result);
                     });
    }
  }
};

// "key=" and three texts as one constant record, for notes.
template <std::size_t Bytes>
struct note_record {
  std::uint32_t name_bytes = 5, text_bytes = 0, type = MOLT_NOTE_INFO;
  char name[8] = "Molt";
  char value[(Bytes + 3) & ~std::size_t{3}] = {};
};
template <std::size_t Bytes>
constexpr note_record<Bytes> make_note(std::string_view key, std::string_view a,
                                       std::string_view separator, std::string_view b) {
  note_record<Bytes> note;
  std::size_t n = 0;
  for (std::string_view part : {key, a, separator, b}) {
    for (char ch : part) note.value[n++] = ch;
  }
  note.text_bytes = static_cast<std::uint32_t>(n + 1);
  return note;
}

template <class T>
struct param_traits;
template <class T>
constexpr const char* param_type_name() {
  // As the kernel calls them.
  if constexpr (std::is_same_v<T, bool>) {
    return "bool";
  } else if constexpr (std::is_floating_point_v<T>) {
    return sizeof(T) == sizeof(float) ? "float" : "double";
  } else if constexpr (std::is_integral_v<T>) {
    constexpr const char* names[2][4] = {{"byte", "ushort", "uint", "ulong"},
                                         {"char", "short", "int", "long"}};
    return names[std::is_signed_v<T>][sizeof(T) == 1   ? 0
                                      : sizeof(T) == 2 ? 1
                                      : sizeof(T) == 4 ? 2
                                                       : 3];
  } else {
    return "string";
  }
}

}  // namespace detail

// A module parameter: set by `molt load FILE name=value` before init, and, if writable, by
// `molt set` while callbacks read it.
template <class T>
class param {
  static_assert(std::is_arithmetic_v<T>, "a parameter is a number, a bool or a std::string");

 public:
  constexpr explicit param(T value) : value_(value) {}
  T get() const { return value_.load(std::memory_order_relaxed); }
  operator T() const { return get(); }

  static int set(void* self, const char* text) {
    T value{};
    if constexpr (std::is_same_v<T, bool>) {
      std::string_view s = text;
      if (s == "1" || s == "y" || s == "Y" || s == "on" || s == "true" || s.empty()) {
        value = true;
      } else if (s == "0" || s == "n" || s == "N" || s == "off" || s == "false") {
        value = false;
      } else {
        return -EINVAL;
      }
    } else {
      const char* end = text + std::strlen(text);
      const char* at = text + (text[0] == '+' && text[1] != '-');
      if constexpr (std::is_integral_v<T>) {
        // As in C and in the kernel: 0x10 is sixteen. (Not by from_chars, whose table of digits is a
        // unique symbol, which could never be unloaded.)
        if (at[0] == '0' && (at[1] == 'x' || at[1] == 'X')) {
          unsigned long long number = 0;
          if ((at += 2) == end) return -EINVAL;
          for (; at != end; ++at) {
            const int letter = (*at | 32) - 'a';
            const int digit = *at >= '0' && *at <= '9'    ? *at - '0'
                              : letter >= 0 && letter < 6 ? letter + 10
                                                          : -1;
            if (digit < 0 || number >> 60 != 0) return -EINVAL;
            number = number * 16 + static_cast<unsigned>(digit);
          }
          if (number > static_cast<unsigned long long>(std::numeric_limits<T>::max()))
            return -EINVAL;
          static_cast<param*>(self)->value_.store(static_cast<T>(number),
                                                  std::memory_order_relaxed);
          return 0;
        }
      }
      const std::from_chars_result result = std::from_chars(at, end, value);
      if (result.ec != std::errc{} || result.ptr != end || at == end) return -EINVAL;
    }
    static_cast<param*>(self)->value_.store(value, std::memory_order_relaxed);
    return 0;
  }
  static int get(const void* self, char* text, std::size_t bytes) {
    T value = static_cast<const param*>(self)->get();
    if constexpr (std::is_same_v<T, bool>) {
      return std::snprintf(text, bytes, "%s", value ? "Y" : "N");
    } else if constexpr (std::is_floating_point_v<T>) {
      return std::snprintf(text, bytes, "%.17g", value);
    } else if constexpr (std::is_signed_v<T>) {
      return std::snprintf(text, bytes, "%lld", static_cast<long long>(value));
    } else {
      return std::snprintf(text, bytes, "%llu", static_cast<unsigned long long>(value));
    }
  }

 private:
  std::atomic<T> value_;
};

// Readers get a copy: the text may be set meanwhile.
template <>
class param<std::string> {
 public:
  explicit param(std::string value) : value_(std::move(value)) {}
  std::string get() const {
    std::lock_guard lock(mutex_);
    return value_;
  }
  static int set(void* self, const char* text) {
    auto* p = static_cast<param*>(self);
    return detail::guarded(
        [&]() -> int {
          std::string copy = text;
          std::lock_guard lock(p->mutex_);
          p->value_.swap(copy);
          return 0;
        },
        [](const char*) -> int { return -ENOMEM; });
  }
  static int get(const void* self, char* text, std::size_t bytes) {
    auto* p = static_cast<const param*>(self);
    std::lock_guard lock(p->mutex_);
    return std::snprintf(text, bytes, "%s", p->value_.c_str());
  }

 private:
  mutable std::mutex mutex_;
  std::string value_;
};

// A symbol of another module, called like the function it is.
template <class F>
class import {
 public:
  template <class... Args>
  decltype(auto) operator()(Args&&... args) const {
    return reinterpret_cast<F*>(address_)(std::forward<Args>(args)...);
  }
  F* get() const { return reinterpret_cast<F*>(address_); }
  // False for a MOLT_OPTIONAL import that this process does not have.
  explicit operator bool() const { return address_ != nullptr; }
  void** slot() { return &address_; }

 private:
  void* address_ = nullptr;
};

// A C++ face of the state handed from one version to the next: trivially copyable values in order.
class state_writer {
 public:
  explicit state_writer(molt_state* state) : state_(state) {}
  template <class T>
  int put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    return molt_state_write(state_, &value, sizeof value);
  }
  int put(std::string_view text) {
    if (int error = put(static_cast<std::uint64_t>(text.size()))) return error;
    return molt_state_write(state_, text.data(), text.size());
  }

 private:
  molt_state* state_;
};

class state_reader {
 public:
  explicit state_reader(const molt_state* state)
      : at_(static_cast<const char*>(molt_state_data(state))),
        end_(at_ + molt_state_size(state)),
        version_(molt_state_version(state)),
        final_(molt_state_final(state) != 0) {}
  // The state_version of the module that wrote it.
  std::uint32_t version() const { return version_; }
  // See molt_state_final().
  bool final() const { return final_; }
  bool at_end() const { return at_ == end_; }
  // -EINVAL, and value untouched, when the state is too short.
  template <class T>
  int get(T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    if (static_cast<std::size_t>(end_ - at_) < sizeof value) return -EINVAL;
    std::memcpy(&value, at_, sizeof value);
    at_ += sizeof value;
    return 0;
  }
  int get(std::string& text) {
    std::uint64_t size = 0;
    if (int error = get(size)) return error;
    if (static_cast<std::uint64_t>(end_ - at_) < size) return -EINVAL;
    text.assign(at_, size);
    at_ += size;
    return 0;
  }

 private:
  const char* at_;
  const char* end_;
  std::uint32_t version_;
  bool final_;
};

}  // namespace molt

#define MOLT_CXX_NOTE_(key_, a_, separator_, b_)                                          \
  [[gnu::used, gnu::retain, gnu::section(".note.molt"),                                   \
    gnu::aligned(4)]] static constexpr auto MOLT_CAT_(molt_note_, __COUNTER__) =          \
      molt::detail::make_note<sizeof(key_) + sizeof(separator_) - 1 +                     \
                              std::string_view(a_).size() + std::string_view(b_).size()>( \
          key_, a_, separator_, b_);

// Once in each module. The licence decides which restricted exports it may use, and taints.
#define MOLT_MODULE(name_, version_, license_, description_)                 \
  static_assert(sizeof(name_) - 1 <= MOLT_NAME_MAX, "module name too long"); \
  extern "C" {                                                               \
  MOLT_MODULE_BODY_(name_, version_, license_, description_)                 \
  }

// int f(): 0 or negative errno. The module goes live, and its callbacks in force, after it.
#define MOLT_INIT(f_) \
  extern "C" int molt_module_init(void) { return molt::detail::guarded_call<f_>("init"); }

// void f(): when it runs, no thread is in a callback and none can enter.
#define MOLT_EXIT(f_)                                           \
  extern "C" void molt_module_exit(void) {                      \
    molt::detail::guarded_call<[] { return f_(), 0; }>("exit"); \
  }

// Hand-over: `version_` is what save writes, `oldest_` the oldest that restore understands.
//     int save(molt::state_writer out);    int restore(molt::state_reader in);
#define MOLT_STATE(version_, oldest_, save_, restore_) \
  MOLT_STATE_(version_, oldest_, save_, restore_, 0u)
// The same without a pause: save runs beside callbacks, and once more when they have ended; restore
// is called for each, the second time with in.final().
#define MOLT_STATE_LIVE(version_, oldest_, save_, restore_) \
  MOLT_STATE_(version_, oldest_, save_, restore_, MOLT_MODULE_LIVE_HANDOVER)
#define MOLT_STATE_(version_, oldest_, save_, restore_, flags_)                                    \
  extern "C" const molt_state_info molt_module_state_info = {version_, oldest_, flags_};           \
  extern "C" int molt_module_save(molt_state* state) {                                             \
    return molt::detail::guarded_call<[](molt_state* s) { return save_(molt::state_writer(s)); }>( \
        "save", state);                                                                            \
  }                                                                                                \
  extern "C" int molt_module_restore(const molt_state* state) {                                    \
    return molt::detail::guarded_call<[](const molt_state* s) {                                    \
      return restore_(molt::state_reader(s));                                                      \
    }>("restore", state);                                                                          \
  }

// Attaches `callback_` to a hook point. Optional: an order, MOLT_ORDER_FIRST or MOLT_ORDER_LAST, and
// flags: MOLT_OPTIONAL when the host may lack the hook.
#define MOLT_HOOK(point_, callback_, ...) MOLT_HOOK_(point_, callback_, __COUNTER__, ##__VA_ARGS__)
#define MOLT_HOOK_(point_, callback_, id_, ...) \
  MOLT_HOOK2_(point_, callback_, id_, MOLT_CAT_(molt_callback_, id_), ##__VA_ARGS__)
#define MOLT_HOOK2_(point_, callback_, id_, var_, ...)                                          \
  MOLT_CXX_NOTE_("hook=", point_::name, " ", molt::signature_of<point_::signature>())           \
  /* Unnamed: several sources of one module have the same counters. */                          \
  namespace {                                                                                   \
  extern molt_callback var_;                                                                    \
  MOLT_ITEM_("molt_callbacks")                                                                  \
  molt_callback var_ = {point_::name,                                                           \
                        molt::signature_of<point_::signature>(),                                \
                        molt::fingerprint_of<point_::signature>(),                              \
                        reinterpret_cast<molt_fn>(                                              \
                            &molt::detail::wrapper<point_::signature, callback_, &var_>::call), \
                        molt::detail::order_of(__VA_ARGS__),                                    \
                        molt::detail::flags_of(__VA_ARGS__),                                    \
                        id_,                                                                    \
                        0,                                                                      \
                        nullptr};                                                               \
  }

namespace molt::detail {
// Written out above, not made by a function: the cast of a function pointer is no constant
// expression, but is initialised statically where it stands. `molt load -n` reads it in the file.
constexpr int order_of(int order = MOLT_ORDER_NORMAL, unsigned = 0) { return order; }
constexpr unsigned flags_of(int = 0, unsigned flags = 0) { return flags; }
}  // namespace molt::detail

// A parameter `name_` of type int, unsigned, long, unsigned long, bool, double or std::string.
#define MOLT_PARAM(type_, name_, value_, description_, flags_)                                     \
  MOLT_CXX_NOTE_("parm=" #name_ ":", molt::detail::param_type_name<type_>(), ":", description_)    \
  static molt::param<type_> name_{value_};                                                         \
  MOLT_ITEM_("molt_params")                                                                        \
  static const molt_param MOLT_CAT_(molt_param_, name_) = {#name_,                                 \
                                                           molt::detail::param_type_name<type_>(), \
                                                           description_,                           \
                                                           &molt::param<type_>::set,               \
                                                           &molt::param<type_>::get,               \
                                                           &name_,                                 \
                                                           flags_,                                 \
                                                           0};

// Offers a function of this module to others, under its own name.
#define MOLT_EXPORT(symbol_, ...)                                                  \
  MOLT_CXX_NOTE_("export=", #symbol_, " ",                                         \
                 molt::signature_of<std::remove_reference_t<decltype(symbol_)>>()) \
  MOLT_ITEM_("molt_exports")                                                       \
  static const molt_export MOLT_CAT_(molt_export_, symbol_) = {                    \
      #symbol_,                                                                    \
      molt::signature_of<std::remove_reference_t<decltype(symbol_)>>(),            \
      molt::fingerprint_of<std::remove_reference_t<decltype(symbol_)>>(),          \
      (void*)&symbol_,                                                             \
      0u __VA_OPT__(|) __VA_ARGS__,                                                \
      0};

// Declares `symbol_`, callable, of type F: the export of another module. It holds that module.
#define MOLT_IMPORT(F_, symbol_, ...)                                           \
  MOLT_CXX_NOTE_("import=", #symbol_, " ", molt::signature_of<F_>())            \
  static molt::import <F_> symbol_;                                             \
  MOLT_ITEM_("molt_imports")                                                    \
  static const molt_import MOLT_CAT_(molt_import_, symbol_) = {                 \
      #symbol_,       molt::signature_of<F_>(),     molt::fingerprint_of<F_>(), \
      symbol_.slot(), 0u __VA_OPT__(|) __VA_ARGS__, 0};
