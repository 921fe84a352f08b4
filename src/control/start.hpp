// start.hpp - control::start() for tests, which use smaller limits.
#pragma once

#include "control/control.hpp"
#include "control/server.hpp"

namespace molt::control {

[[nodiscard]] Status start_with(const Options& options, const Limits& limits);

}  // namespace molt::control
