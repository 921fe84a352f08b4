// prospects.hpp - what could be done in a process once the runtime is in it, and what each needs.
#pragma once

#include "base/result.hpp"

#include <string>
#include <vector>

namespace molt::attach {

struct Prospect {
  std::string what;  // "attach", "modules", "hooks and patches of the program", ...
  bool possible;
  std::string text;  // why not, or what is to be known of it; "" for a plain yes
};

// From /proc and the files that are mapped there. `is_attached`: the runtime is there already. The error
// is Target::open()'s.
[[nodiscard]] Result<std::vector<Prospect>> prospects(int pid, bool is_attached);

}  // namespace molt::attach
