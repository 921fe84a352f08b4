#include "builder/line_guard.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <vector>

namespace molt::builder {
namespace {

std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size() - 1) + 1;
    lines.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
  return lines;
}

// For each line of `to` the index of the line of `from` that it is, or -1. Myers' greedy algorithm:
// the time is (lines + edits) x edits, and diffs have few edits.
std::vector<std::ptrdiff_t> match(const std::vector<std::string_view>& from,
                                  const std::vector<std::string_view>& to) {
  std::vector<std::ptrdiff_t> matched(to.size(), -1);
  const auto n = static_cast<std::ptrdiff_t>(from.size());
  const auto m = static_cast<std::ptrdiff_t>(to.size());
  const std::ptrdiff_t most = std::min<std::ptrdiff_t>(n + m, 1500);
  std::vector<std::vector<std::ptrdiff_t>> trace;
  std::vector<std::ptrdiff_t> furthest(static_cast<std::size_t>(2 * most + 3), 0);
  const auto at = [&](std::vector<std::ptrdiff_t>& v, std::ptrdiff_t k) -> std::ptrdiff_t& {
    return v[static_cast<std::size_t>(k + most + 1)];
  };
  std::ptrdiff_t edits = -1;
  for (std::ptrdiff_t d = 0; d <= most && edits < 0; ++d) {
    trace.push_back(furthest);
    for (std::ptrdiff_t k = -d; k <= d; k += 2) {
      const bool down = k == -d || (k != d && at(furthest, k - 1) < at(furthest, k + 1));
      std::ptrdiff_t x = down ? at(furthest, k + 1) : at(furthest, k - 1) + 1;
      std::ptrdiff_t y = x - k;
      while (x < n && y < m &&
             from[static_cast<std::size_t>(x)] == to[static_cast<std::size_t>(y)]) {
        ++x;
        ++y;
      }
      at(furthest, k) = x;
      if (x >= n && y >= m) {
        edits = d;
        break;
      }
    }
  }
  if (edits < 0) return matched;  // another file altogether: nothing to keep
  std::ptrdiff_t x = n;
  std::ptrdiff_t y = m;
  for (std::ptrdiff_t d = edits; d >= 0; --d) {
    std::vector<std::ptrdiff_t>& v = trace[static_cast<std::size_t>(d)];
    const std::ptrdiff_t k = x - y;
    const bool down = k == -d || (k != d && at(v, k - 1) < at(v, k + 1));
    const std::ptrdiff_t before = down ? k + 1 : k - 1;
    const std::ptrdiff_t before_x = d == 0 ? 0 : at(v, before);
    const std::ptrdiff_t before_y = d == 0 ? 0 : before_x - before;
    while (x > before_x && y > before_y) {
      --x;
      --y;
      matched[static_cast<std::size_t>(y)] = x;
    }
    if (d == 0) break;
    x = before_x;
    y = before_y;
  }
  return matched;
}

// Follows comments and literals through the lines, so that one knows whether a line begins in the open.
class Lexer {
 public:
  // Does the next line begin outside of comments, literals and continued lines?
  bool is_open() const { return state_ == State::code && !continued_; }

  void pass(std::string_view line) {
    continued_ = false;
    for (std::size_t i = 0; i < line.size(); ++i) {
      const char c = line[i];
      const std::string_view rest = line.substr(i);
      switch (state_) {
        case State::code:
          if (rest.starts_with("//")) {
            continued_ = ends_with_backslash(line);
            return;
          }
          if (rest.starts_with("/*")) {
            state_ = State::comment;
            ++i;
          } else if (c == '"' && i > 0 && line[i - 1] == 'R' && begin_raw(rest)) {
            i += raw_end_.size() - 1;
          } else if (c == '"' || c == '\'') {
            // 1'000'000 is a number.
            if (c == '\'' && i > 0 && is_word(line[i - 1]) && i + 1 < line.size() &&
                is_word(line[i + 1])) {
              break;
            }
            i = skip_literal(line, i);
          }
          break;
        case State::comment:
          if (rest.starts_with("*/")) {
            state_ = State::code;
            ++i;
          }
          break;
        case State::raw:
          if (rest.starts_with(raw_end_)) {
            state_ = State::code;
            i += raw_end_.size() - 1;
          }
          break;
      }
    }
    if (state_ == State::code) continued_ = ends_with_backslash(line);
  }

 private:
  enum class State { code, comment, raw };

  static bool is_word(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
  }
  static bool ends_with_backslash(std::string_view line) {
    while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.remove_suffix(1);
    return line.ends_with('\\');
  }
  static std::size_t skip_literal(std::string_view line, std::size_t begin) {
    for (std::size_t i = begin + 1; i < line.size(); ++i) {
      if (line[i] == '\\') {
        ++i;
      } else if (line[i] == line[begin] || line[i] == '\n') {
        return i;
      }
    }
    return line.size();
  }
  bool begin_raw(std::string_view rest) {
    const std::size_t open = rest.find('(');
    if (open > 17) return false;
    raw_end_ = fmt::format("){}\"", rest.substr(1, open - 1));
    state_ = State::raw;
    return true;
  }

  State state_ = State::code;
  bool continued_ = false;
  std::string raw_end_;
};

// The number that a #line directive, or a preprocessor's `# 12 "file"`, gives the next line; 0: none.
std::size_t directive(std::string_view line) {
  const auto skip = [&line] {
    while (!line.empty() && (line[0] == ' ' || line[0] == '\t')) line.remove_prefix(1);
  };
  skip();
  if (!line.starts_with('#')) return 0;
  line.remove_prefix(1);
  skip();
  if (line.starts_with("line")) {
    line.remove_prefix(4);
    skip();
  }
  std::size_t number = 0;
  const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), number);
  return error == std::errc{} && end != line.data() ? number : 0;
}

// Removed and added lines without lines around them, as a hunk of a unified diff.
class Hunk {
 public:
  void remove(std::string_view line, std::size_t number) {
    if (removed_ == 0) old_begin_ = number;
    ++removed_;
    append(removed_lines_, '-', line);
  }
  void add(std::string_view line, std::size_t number) {
    if (added_ == 0) new_begin_ = number;
    ++added_;
    append(added_lines_, '+', line);
  }
  // "" if there is nothing in it.
  std::string take(std::size_t now) {
    if (removed_ + added_ == 0) return "";
    std::string text =
        fmt::format("@@ -{},{} +{},{} @@\n{}{}", removed_ != 0 ? old_begin_ : now, removed_,
                    added_ != 0 ? new_begin_ : now, added_, removed_lines_, added_lines_);
    *this = {};
    return text;
  }

 private:
  static void append(std::string& to, char mark, std::string_view line) {
    to += mark;
    to += line;
    if (!line.ends_with('\n')) to += '\n';
  }
  std::size_t old_begin_ = 0;
  std::size_t new_begin_ = 0;
  std::size_t removed_ = 0;
  std::size_t added_ = 0;
  std::string removed_lines_;
  std::string added_lines_;
};

bool is_lone_brace(std::string_view line) {
  if (!line.starts_with('}')) return false;
  line.remove_prefix(1);
  if (line.starts_with(';')) line.remove_prefix(1);
  return line.find_first_not_of(" \t\r\n") == line.npos;
}

}  // namespace

std::vector<bool> added_lines(std::string_view old_text, std::string_view new_text) {
  std::vector<bool> added;
  for (const std::ptrdiff_t was : match(split(old_text), split(new_text))) added.push_back(was < 0);
  return added;
}

Guarded guard_lines(std::string_view old_text, std::string_view new_text) {
  const auto old_lines = split(old_text);
  const auto new_lines = split(new_text);
  const auto matched = match(old_lines, new_lines);

  // What __LINE__ is on each old line.
  std::vector<std::size_t> number(old_lines.size());
  std::size_t next = 1;
  for (std::size_t i = 0; i < old_lines.size(); ++i) {
    number[i] = next++;
    if (const std::size_t set = directive(old_lines[i])) next = set;
  }

  Guarded guarded;
  Lexer lexer;
  std::size_t now = 1;
  bool after_brace = false;
  std::size_t old_done = 0;
  Hunk hunk;
  const auto close_hunk = [&](std::size_t old_end) {
    for (; old_done < old_end; ++old_done) hunk.remove(old_lines[old_done], number[old_done]);
    guarded.hunks += hunk.take(now);
  };
  for (std::size_t i = 0; i < new_lines.size(); ++i) {
    const std::ptrdiff_t was = matched[i];
    if (was >= 0) {
      close_hunk(static_cast<std::size_t>(was));
      old_done = static_cast<std::size_t>(was) + 1;
    } else {
      hunk.add(new_lines[i], now);
    }
    if (was >= 0 && after_brace && lexer.is_open() &&
        now != number[static_cast<std::size_t>(was)]) {
      now = number[static_cast<std::size_t>(was)];
      guarded.text += fmt::format("#line {}\n", now);
      ++guarded.directives;
    }
    guarded.text += new_lines[i];
    lexer.pass(new_lines[i]);
    // The brace itself must be an old line: what comes behind a new one is still part of the hunk.
    after_brace = was >= 0 && is_lone_brace(new_lines[i]);
    ++now;
    if (const std::size_t set = directive(new_lines[i])) now = set;
  }
  close_hunk(old_lines.size());
  return guarded;
}

bool is_c_family(std::string_view path) {
  constexpr std::array<std::string_view, 16> endings = {
      ".c",   ".cc",  ".cpp", ".cxx", ".c++", ".C",   ".h",   ".hh",
      ".hpp", ".hxx", ".H",   ".inc", ".inl", ".ipp", ".tcc", ".tpp"};
  return std::ranges::any_of(endings,
                             [path](std::string_view ending) { return path.ends_with(ending); });
}

}  // namespace molt::builder
