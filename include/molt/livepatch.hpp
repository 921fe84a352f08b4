// livepatch.hpp - livepatch.h for modules written in C++.
//
//     #include <molt/livepatch.hpp>
//
//     static int new_parse(const char* text) { ... }
//
//     MOLT_MODULE("fix_parse", "1.0", "MIT", "parse() checks its length")
//     MOLT_PATCH(MOLT_PROGRAM(MOLT_REPLACE("_Z5parsePKc", new_parse)))
//
// MOLT_PATCH writes the module's init, exit and mark. A module that wants its own init enables its
// patch there, as livepatch.h shows, and writes MOLT_LIVEPATCH_MODULE.
#pragma once

#include <molt/cxx20.hpp>

#include <molt/livepatch.h>
#include <molt/module.hpp>

namespace molt {

// One function of a list; member functions are given as free ones that take `this`.
template <class F>
inline molt_patch_func replacement(const char* old_name, F* new_function,
                                   unsigned long position = 0, unsigned flags = 0) {
  return {old_name, position, reinterpret_cast<molt_fn>(new_function), flags, 0};
}

}  // namespace molt

#define MOLT_LIVEPATCH_MODULE MOLT_CXX_NOTE_("livepatch=", "Y", "", "")

// MOLT_REPLACE(old name, new function[, position[, flags]])
#define MOLT_REPLACE(...) molt::replacement(__VA_ARGS__)

// Lists with their terminating entries, in static memory. Copied there, once: what is initialised there asks for
// guards, and a patch for a C program would bring it libstdc++.
#define MOLT_LIST_(type_, name_, ...)                      \
  const type_ name_##_now_[] = {__VA_ARGS__};              \
  static type_ name_[sizeof name_##_now_ / sizeof(type_)]; \
  for (unsigned long i_ = 0; i_ < sizeof name_ / sizeof(type_); ++i_) name_[i_] = name_##_now_[i_]
#define MOLT_FUNCS_(...)                                                         \
  [] {                                                                           \
    MOLT_LIST_(molt_patch_func, list, __VA_ARGS__, {nullptr, 0, nullptr, 0, 0}); \
    return static_cast<const molt_patch_func*>(list);                            \
  }()
#define MOLT_PROGRAM(...)                 \
  molt_patch_object {                     \
    nullptr, MOLT_FUNCS_(__VA_ARGS__), {} \
  }
#define MOLT_OBJECT(name_, ...)         \
  molt_patch_object {                   \
    name_, MOLT_FUNCS_(__VA_ARGS__), {} \
  }

#define MOLT_PATCH(...) MOLT_PATCH_WITH(0u, __VA_ARGS__)
// The first argument is flags: MOLT_PATCH_REPLACE, MOLT_PATCH_IMMEDIATE.
#define MOLT_PATCH_WITH(flags_, ...)                                                \
  MOLT_LIVEPATCH_MODULE                                                             \
  extern "C" int molt_module_init(void) {                                           \
    MOLT_LIST_(molt_patch_object, objects, __VA_ARGS__, {nullptr, nullptr, {}});    \
    static const molt_patch patch = {sizeof(molt_patch), flags_, objects, nullptr}; \
    return molt_patch_enable(&molt_this_module, &patch);                            \
  }                                                                                 \
  extern "C" void molt_module_exit(void) {}
