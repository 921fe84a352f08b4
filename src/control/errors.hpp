// errors.hpp - what an errno means to a client: the `class` of a reply, and with it the exit code of
// `molt`. The one place where that is decided.
#pragma once

#include "abi/wire.hpp"
#include "base/result.hpp"

namespace molt::control {

// What was asked for when it failed.
enum class Asked {
  request,    // nothing yet: the request makes no sense
  load,       // a new module, also as a replacement
  module,     // something of a module that must exist
  hook,       // something of a hook that must exist
  attribute,  // an object or attribute
  other,
};

[[nodiscard]] wire::ErrorClass classify(Asked asked, const Error& error);

// Of an operation whose descriptors the process has closed meanwhile (EBADF), that as well.
[[nodiscard]] Error explain_closed(const Error& error);

}  // namespace molt::control
