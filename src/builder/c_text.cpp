#include "builder/c_text.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>

namespace molt::builder {

bool is_of_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }
bool is_blank(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }

namespace {

class Code {
 public:
  explicit Code(std::string_view text) : code_(text) {
    bool is_line_begin = true;
    while (at_ < code_.size()) {
      const char c = code_[at_];
      const char next = at_ + 1 < code_.size() ? code_[at_ + 1] : '\0';
      if (c == '/' && next == '*') {
        blank(end_of_comment());
      } else if ((c == '/' && next == '/') || (c == '#' && is_line_begin)) {
        blank(end_of_line());
      } else if (c == 'R' && next == '"' && (at_ == 0 || !is_of_name(code_[at_ - 1]))) {
        blank(end_of_raw());
      } else if (c == '"' || (c == '\'' && (at_ == 0 || !is_of_name(code_[at_ - 1])))) {
        blank(end_of_literal(c));
      } else {
        if (!is_blank(c)) is_line_begin = false;
        if (c == '\n') is_line_begin = true;
        ++at_;
      }
    }
  }
  std::string take() { return std::move(code_); }

 private:
  std::size_t end_of_comment() const {
    const std::size_t end = code_.find("*/", at_ + 2);
    return end == code_.npos ? code_.size() : end + 2;
  }
  // With the lines that it is continued on; comments of several lines are met on the way.
  std::size_t end_of_line() const {
    std::size_t i = at_;
    for (; i < code_.size() && code_[i] != '\n'; ++i) {
      if (code_[i] == '\\' && i + 1 < code_.size() && code_[i + 1] == '\n') ++i;
      if (code_[i] == '/' && code_.compare(i, 2, "/*") == 0 && code_[at_] == '#') {
        const std::size_t end = code_.find("*/", i + 2);
        i = end == code_.npos ? code_.size() - 1 : end + 1;
      }
    }
    return i;
  }
  std::size_t end_of_literal(char quote) const {
    std::size_t i = at_ + 1;
    for (; i < code_.size() && code_[i] != quote && code_[i] != '\n'; ++i) {
      if (code_[i] == '\\') ++i;
    }
    return std::min(i + 1, code_.size());
  }
  std::size_t end_of_raw() const {
    const std::size_t open = code_.find('(', at_);
    if (open == code_.npos) return code_.size();
    const std::string close = ")" + code_.substr(at_ + 2, open - at_ - 2) + "\"";
    const std::size_t end = code_.find(close, open);
    return end == code_.npos ? code_.size() : end + close.size();
  }
  void blank(std::size_t end) {
    for (; at_ < end; ++at_) {
      if (code_[at_] != '\n') code_[at_] = ' ';
    }
  }

  std::string code_;
  std::size_t at_ = 0;
};

}  // namespace

std::string code_of(std::string_view text) { return Code(text).take(); }

std::size_t skip_spaces(std::string_view code, std::size_t at) {
  while (at < code.size() && is_blank(code[at])) ++at;
  return at;
}

std::string_view word_at(std::string_view code, std::size_t at) {
  std::size_t end = at;
  while (end < code.size() && is_of_name(code[end])) ++end;
  return code.substr(at, end - at);
}

std::size_t end_of_bracket(std::string_view code, std::size_t at) {
  std::size_t depth = 0;
  for (; at < code.size(); ++at) {
    if (code[at] == '(' || code[at] == '{' || code[at] == '[') ++depth;
    if (code[at] == ')' || code[at] == '}' || code[at] == ']') {
      if (--depth == 0) return at + 1;
    }
  }
  return code.npos;
}

std::size_t begin_of_bracket(std::string_view code, std::size_t at) {
  std::size_t depth = 0;
  for (;; --at) {
    if (code[at] == ')' || code[at] == '}' || code[at] == ']') ++depth;
    if (code[at] == '(' || code[at] == '{' || code[at] == '[') {
      if (--depth == 0) return at;
    }
    if (at == 0) return code.npos;
  }
}

namespace {

struct Head {
  std::string_view name;  // "": none
  std::size_t brace = 0;
};

// What stands between the keyword and the brace; none, if no definition begins here.
std::optional<Head> read_head(std::string_view code, std::size_t at) {
  Head head;
  for (;;) {
    at = skip_spaces(code, at);
    if (at >= code.size()) return std::nullopt;
    if (code[at] == '{') {
      head.brace = at;
      return head;
    }
    if (code[at] == '[' || (code[at] == '(' && head.name.empty())) {
      at = end_of_bracket(code, at);
      if (at == code.npos) return std::nullopt;
      continue;
    }
    if (code[at] == ':' && code.substr(at, 2) != "::") {
      // Bases, or what an enumeration is kept in.
      head.brace = code.find_first_of("{;()", at);
      if (head.brace == code.npos || code[head.brace] != '{') return std::nullopt;
      return head;
    }
    const std::string_view word = word_at(code, at);
    if (word.empty()) return std::nullopt;
    at += word.size();
    if (word == "__attribute__" || word == "alignas" || word == "_Alignas") {
      at = skip_spaces(code, at);
      if (at >= code.size() || code[at] != '(') return std::nullopt;
      at = end_of_bracket(code, at);
      if (at == code.npos) return std::nullopt;
    } else if (word != "final" && word != "class") {
      head.name = word;
    }
  }
}

bool is_typedef(std::string_view code, std::size_t keyword) {
  while (keyword > 0 && is_blank(code[keyword - 1])) --keyword;
  constexpr std::string_view word = "typedef";
  return code.substr(0, keyword).ends_with(word) &&
         (keyword == word.size() || !is_of_name(code[keyword - word.size() - 1]));
}

}  // namespace

std::vector<TextRange> definitions_of(std::string_view text, std::string_view name) {
  constexpr std::array<std::string_view, 4> keywords = {"struct", "union", "class", "enum"};
  const std::string code = code_of(text);
  std::vector<TextRange> found;
  for (std::size_t at = 0; at < code.size();) {
    const std::string_view word = word_at(code, at);
    if (word.empty()) {
      ++at;
      continue;
    }
    const std::size_t begin = at;
    at += word.size();
    if (std::ranges::find(keywords, word) == keywords.end()) continue;
    const auto head = read_head(code, at);
    if (!head) continue;
    at = head->brace + 1;  // others may be defined inside
    const std::size_t end = end_of_bracket(code, head->brace);
    if (end == code.npos) continue;
    const std::string_view behind = word_at(code, skip_spaces(code, end));
    if (head->name == name || (is_typedef(code, begin) && behind == name)) {
      found.push_back({begin, end});
    }
  }
  return found;
}

}  // namespace molt::builder
