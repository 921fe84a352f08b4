#include "builder/edits.hpp"

#include <algorithm>
#include <cstdio>

namespace molt::builder {
namespace {

bool is_same_file(std::string_view path, std::string_view named) {
  return path == named || (path.size() > named.size() && path.ends_with(named) &&
                           path[path.size() - named.size() - 1] == '/');
}

std::string_view stripped(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t");
  return begin == std::string_view::npos ? std::string_view() : text.substr(begin);
}

}  // namespace

Edits::Edits(std::string_view diff) {
  std::string file;
  int old_line = 0, new_line = 0, old_left = 0, new_left = 0;
  while (!diff.empty()) {
    const std::size_t newline = diff.find('\n');
    const std::string_view line = diff.substr(0, newline);
    diff.remove_prefix(newline == std::string_view::npos ? diff.size() : newline + 1);
    if (old_left == 0 && new_left == 0) {
      if (line.starts_with("+++ ") || line.starts_with("--- ")) {
        std::string_view path = line.substr(4);
        path = path.substr(0, path.find_first_of("\t "));
        if (path == "/dev/null") continue;
        const std::size_t slash = path.find('/');
        file = slash == std::string_view::npos ? path : path.substr(slash + 1);
      } else if (line.starts_with("@@ ")) {
        old_left = new_left = 1;
        const std::string text(line);
        // The counts are left out where they are 1.
        if (std::sscanf(text.c_str(), "@@ -%d,%d +%d,%d", &old_line, &old_left, &new_line,
                        &new_left) == 4 ||
            (old_left = new_left = 1,
             std::sscanf(text.c_str(), "@@ -%d +%d,%d", &old_line, &new_line, &new_left) == 3) ||
            (old_left = new_left = 1,
             std::sscanf(text.c_str(), "@@ -%d,%d +%d", &old_line, &old_left, &new_line) == 3)) {
          continue;
        }
        old_left = new_left = 1;
        std::sscanf(text.c_str(), "@@ -%d +%d", &old_line, &new_line);
      }
      continue;
    }
    const char mark = line.empty() ? ' ' : line.front();
    if (mark == '+') {
      lines_.push_back({file, new_line++, true, std::string(line.substr(1))});
      --new_left;
    } else if (mark == '-') {
      lines_.push_back({file, old_line++, false, std::string(line.substr(1))});
      --old_left;
    } else if (mark == ' ') {
      ++old_line;
      ++new_line;
      --old_left;
      --new_left;
    }
  }
}

bool Edits::touches(std::string_view file, int first, int last, bool added) const {
  return std::any_of(lines_.begin(), lines_.end(), [&](const EditedLine& e) {
    return e.added == added && e.line >= first && e.line <= last && is_same_file(file, e.file);
  });
}

bool Edits::has_directives() const {
  return std::any_of(lines_.begin(), lines_.end(), [](const EditedLine& e) {
    const std::string_view text = stripped(e.text);
    return text.starts_with('#') && !stripped(text.substr(1)).starts_with("include");
  });
}

bool Edits::is_harmless(std::string_view text) {
  text = stripped(text);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t' || text.back() == '\r')) {
    text.remove_suffix(1);
  }
  if (text.empty() || text == "{" || text == "}") return true;
  for (const char* mark : {"//", "/*", "*"}) {
    if (text.starts_with(mark) && (text.find("*/") == text.npos || text.ends_with("*/")))
      return true;
  }
  if (text.starts_with("#include")) return true;
  // "long name(int);", but no macro's "NAME(x);", and nothing that tells the compiler more than the types.
  const std::size_t open = text.find('(');
  const std::size_t space = text.find(' ');
  return text.ends_with(");") && space != text.npos && open != text.npos && space < open &&
         text.find_first_of("={\"") == text.npos && text.find("__") == text.npos &&
         text.find("noreturn") == text.npos;
}

bool Edits::is_file_of(const std::set<std::string>& files, std::string_view named) {
  return std::ranges::any_of(files, [&](const std::string& file) {
    return is_same_file(file, named) || is_same_file(named, file);
  });
}

}  // namespace molt::builder
