// obstacles.hpp - why a process cannot be attached to, found without touching it.
#pragma once

#include "base/result.hpp"

#include <string>
#include <vector>

namespace molt::attach {

struct Obstacle {
  int code;          // a positive errno: what attach() would fail with
  std::string text;  // what, why, and what can be done
};

// All of them, most telling first. Empty: nothing speaks against it.
[[nodiscard]] std::vector<Obstacle> obstacles(int pid);

// The first one as an error.
[[nodiscard]] Status refuse(int pid);

}  // namespace molt::attach
