// control.hpp - what the runtime calls of this layer.
#pragma once

#include <string>

#include "base/result.hpp"
#include "module/manager.hpp"

namespace molt::control {

struct Options {
  std::string name;       // empty: the program's name
  std::string directory;  // empty: chosen, see base/directory.hpp
  unsigned delay_release_ms = 0;
};

[[nodiscard]] Status start(const Options& options);
void stop();
void after_fork_child();
const module::Observer* observer();

}  // namespace molt::control
