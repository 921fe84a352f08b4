// obstacles.hpp - why a process cannot be attached to, found without touching it.
#pragma once

#include "base/result.hpp"

#include <optional>
#include <string>
#include <vector>

namespace molt::attach {

struct Obstacle {
  int code;          // a positive errno: what attach() would fail with
  std::string text;  // what, why, and what can be done
};

enum class Depth {
  untouched,     // from /proc alone
  with_filters,  // and, if nothing else is in the way, what its seccomp filters allow
};

// All of them, most telling first. Empty: nothing speaks against it.
[[nodiscard]] std::vector<Obstacle> obstacles(int pid, Depth depth);

// Of one that has the runtime already: why it does not answer. It is stopped, or frozen.
[[nodiscard]] std::optional<Obstacle> standstill(int pid);

// Why the runtime would not come into a program, or a script's interpreter, that is told by its environment to
// load it first.
[[nodiscard]] std::optional<Obstacle> obstacle_to_preload(const std::string& path);

// The first one as an error.
[[nodiscard]] Status refuse(int pid);

}  // namespace molt::attach
