// edits.hpp - which lines of which files a unified diff changes.
#pragma once

#include <set>
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
  // Outside of functions it changes none: blank, a comment, a brace, the declaration of a function.
  static bool is_harmless(std::string_view text);
  // One of the files is the one that the diff calls so.
  static bool is_file_of(const std::set<std::string>& files, std::string_view named);

 private:
  std::vector<EditedLine> lines_;
};

}  // namespace molt::builder
