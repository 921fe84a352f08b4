// line_guard.hpp - keeps the line numbers of what a diff does not touch.
//
// A diff that adds a line moves everything behind it, and every assert() there has another __LINE__:
// functions that nobody edited would differ. So behind each hunk that changes the number of lines, after
// the first line that is a lone `}` in the first column, a #line directive gives the next line the
// number that it had. Directives that the source has itself are counted.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace molt::builder {

struct Guarded {
  std::string text;
  unsigned directives = 0;  // how many were put in
  // The difference as a unified diff without lines around it, in which lines have the numbers that the
  // compiler gives them: those of the debug information.
  std::string hunks;
};

// The new text of a file with directives in it. Lines inside of comments, strings and continued lines
// are no place for one.
Guarded guard_lines(std::string_view old_text, std::string_view new_text);

// For each line of the new text, whether the diff adds it.
std::vector<bool> added_lines(std::string_view old_text, std::string_view new_text);

// C or C++ by its name, headers included.
bool is_c_family(std::string_view path);

}  // namespace molt::builder
