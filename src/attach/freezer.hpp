// freezer.hpp - the control group that holds a process still: that of a paused container, say.
#pragma once

#include <optional>
#include <string>

namespace molt::attach {

// What lets it go on: a file and what to write there. Nothing: no group of the process is frozen, or none that
// this program sees. A thread that is in a group of its own is not looked at.
struct Frozen {
  std::string file;
  std::string word;

  // "echo 0 >FILE"
  std::string remedy() const { return "echo " + word + " >" + file; }
};
[[nodiscard]] std::optional<Frozen> find_freezer(int pid);

}  // namespace molt::attach
