// edits.hpp - which lines of which files a unified diff changes.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace molt::builder {

struct EditedLine {
  std::string file;  // as the diff calls it, without its first component
  int line = 0;      // in the file after the diff if added, else before
  bool added = false;
  std::string text;
};

class Edits {
 public:
  explicit Edits(std::string_view diff);
  bool empty() const { return lines_.empty(); }
  const std::vector<EditedLine>& lines() const { return lines_; }
  // Whether a line of that file in [first, last] is edited; `added`: as numbered after the diff.
  bool touches(std::string_view file, int first, int last, bool added) const;
  // Edited lines that are directives: they may change any function.
  bool has_directives() const;

 private:
  std::vector<EditedLine> lines_;
};

}  // namespace molt::builder
