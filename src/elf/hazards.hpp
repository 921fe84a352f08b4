// hazards.hpp - what in a module's file speaks against loading it into a process that shall go on.
//
// dlclose() reports success also where it unmaps nothing. What makes glibc keep an object is mostly
// visible in the file; the rest depends on the process and is found only by the proof after
// dlclose():
//   - another object that stays bound one of its references to the module. Typical: a module that
//     uses the C++ library comes into a C host, the C++ library is loaded with it, and takes the
//     module's copy of an inline function of its own (std::ctype's, say). A module that exports
//     nothing but its descriptor (version script, `local: *`) cannot be bound to, and loses its
//     unique symbols as well.
//   - a handle that nobody closed.
// Measured to be harmless with glibc 2.36: indirect functions (IFUNC), DF_1_INITFIRST, DF_1_GLOBAL,
// atexit() from the module, thread-local variables without destructors.
//
// Checked by tests/elf/hazards_test.cpp, which loads and unloads every case.
#pragma once

#include "elf/image.hpp"

#include <string>
#include <vector>

namespace molt::elf {

struct Hazard {
  enum Kind {
    // Keep the module mapped.
    unique_symbol,            // STB_GNU_UNIQUE definition
    nodelete,                 // DF_1_NODELETE
    thread_local_destructor,  // __cxa_thread_atexit is called
    // Outlast the module.
    static_tls,        // initial-exec thread-local variables of its own
    executable_stack,  // PT_GNU_STACK with PF_X, or none
  };
  Kind kind;
  std::string symbol;  // mangled; empty where no symbol is to blame, or it is not known
  std::string text;    // one line: why, and what to do. Symbols in it are mangled: "_Z..."
};

// What keeps, or may keep, the module mapped after dlclose(). In the order of the dynamic symbol
// table within a kind.
[[nodiscard]] std::vector<Hazard> unload_hazards(const Image& image);

// What the process keeps although the module itself is unmapped.
[[nodiscard]] std::vector<Hazard> lasting_effects(const Image& image);

}  // namespace molt::elf
