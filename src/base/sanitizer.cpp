#include "base/sanitizer.hpp"

#include <dlfcn.h>

#include <initializer_list>

namespace molt {

bool under_sanitizer() {
  // Their runtimes come with the program, and are found by what every instrumented object calls.
  static const bool found = [] {
    if (built_with_sanitizer) return true;
    for (const char* entry : {"__asan_init", "__tsan_init", "__lsan_init"}) {
      if (dlsym(RTLD_DEFAULT, entry) != nullptr) return true;
    }
    return false;
  }();
  return found;
}

}  // namespace molt
