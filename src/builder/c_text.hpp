// c_text.hpp - the text of C and C++ sources, as far as one needs to understand it to change it.
//
// Nothing is expanded: what macros make of it the compiler alone knows, and says so if a change did not fit.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace molt::builder {

struct TextRange {
  std::size_t begin = 0, end = 0;
};

bool is_of_name(char c);
bool is_blank(char c);

// The same text, of the same length and lines, with blanks where comments, literals and directives are.
std::string code_of(std::string_view text);

std::size_t skip_spaces(std::string_view code, std::size_t at);
// The name that begins there; "": none.
std::string_view word_at(std::string_view code, std::size_t at);
// Behind the bracket that closes the one at `at`; npos: none does.
std::size_t end_of_bracket(std::string_view code, std::size_t at);
// Of code_of(): where the bracket is opened that is closed at `at`; npos: nowhere.
std::size_t begin_of_bracket(std::string_view code, std::size_t at);

// Definitions of the struct, union, class or enumeration of that name, or of that typedef: from its keyword to its
// brace.
std::vector<TextRange> definitions_of(std::string_view text, std::string_view name);

}  // namespace molt::builder
