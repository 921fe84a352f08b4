#include "builder/diff_header.hpp"

#include <algorithm>
#include <cctype>

namespace molt::builder {
namespace {

std::string_view trimmed(std::string_view text) {
  const auto is_blank = [](char c) { return c == ' ' || c == '\t' || c == '\r'; };
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  return text;
}

// The rest of the line, if that is the field; letters of either case.
bool is_field(std::string_view line, std::string_view name, std::string_view& value) {
  if (line.size() <= name.size() || line[name.size()] != ':') return false;
  const bool is_same = std::equal(
      name.begin(), name.end(), line.begin(),
      [](unsigned char a, unsigned char b) { return std::tolower(a) == std::tolower(b); });
  if (is_same) value = trimmed(line.substr(name.size() + 1));
  return is_same;
}

bool begins_diff(std::string_view line) {
  return line.starts_with("--- ") || line.starts_with("diff ") || line.starts_with("Index: ") ||
         line.starts_with("@@ ");
}

std::string_view without_tags(std::string_view subject) {
  while (subject.starts_with('[')) {
    const std::size_t end = subject.find(']');
    if (end == subject.npos) break;
    subject = trimmed(subject.substr(end + 1));
  }
  return subject;
}

// Control characters would be taken for the end of the text, or for a terminal's.
std::string printable(std::string_view text) {
  constexpr std::size_t longest = 400;
  std::string out(text.substr(0, longest));
  for (char& c : out) {
    if (std::iscntrl(static_cast<unsigned char>(c)) != 0) c = ' ';
  }
  return out;
}

void find_cves(std::string_view text, std::vector<std::string>& found) {
  constexpr std::string_view mark = "CVE-";
  for (std::size_t at = text.find(mark); at != text.npos; at = text.find(mark, at + 1)) {
    const auto digits = [text](std::size_t begin) {
      return std::min(text.find_first_not_of("0123456789", begin), text.size());
    };
    const std::size_t year = digits(at + mark.size());
    if (year != at + mark.size() + 4 || year >= text.size() || text[year] != '-') continue;
    const std::size_t end = digits(year + 1);
    const std::string id(text.substr(at, end - at));
    if (end >= year + 5 && std::ranges::find(found, id) == found.end()) found.push_back(id);
  }
}

}  // namespace

DiffHeader read_diff_header(std::string_view text, std::string_view name) {
  DiffHeader header;
  bool is_subject = false;  // a mail's goes on where a line begins with a blank
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (begins_diff(line)) break;
    std::string_view value;
    if (is_subject && line.starts_with(' ') && !trimmed(line).empty()) {
      header.description += " " + printable(trimmed(line));
      continue;
    }
    is_subject = false;
    if ((is_field(line, "Subject", value) || is_field(line, "Description", value)) &&
        header.description.empty()) {
      header.description = printable(without_tags(value));
      is_subject = line.front() == 'S' || line.front() == 's';
    } else if ((is_field(line, "From", value) || is_field(line, "Author", value)) &&
               header.author.empty()) {
      header.author = printable(value);
    } else if (is_field(line, "Signed-off-by", value) && !value.empty()) {
      header.signed_off.push_back(printable(value));
    }
  }
  find_cves(name, header.cves);
  find_cves(header.description, header.cves);
  return header;
}

}  // namespace molt::builder
