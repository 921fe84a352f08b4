#include "case.hpp"

#include <fstream>
#include <sstream>
#include <stdexcept>

namespace molt::patch_test {

namespace {
// One hunk of the whole file: it has a line for each.
void finish(Source& source, const std::string& hunk, int before, int after, bool is_changed) {
  if (!is_changed) return;
  source.diff = "--- a/" + source.name + "\n+++ b/" + source.name + "\n@@ -1," +
                std::to_string(before) + " +1," + std::to_string(after) + " @@\n" + hunk;
}
}  // namespace

Case read_case(const std::string& path) {
  std::ifstream in(path);
  if (!in) throw std::runtime_error("cannot read " + path);
  Case made;
  std::string line, hunk;
  int before = 0, after = 0;
  bool is_changed = false;
  const auto end_source = [&] {
    if (!made.sources.empty()) finish(made.sources.back(), hunk, before, after, is_changed);
    hunk.clear();
    before = after = 0;
    is_changed = false;
  };
  while (std::getline(in, line)) {
    if (line.rfind("== ", 0) == 0) {
      end_source();
      made.sources.push_back({line.substr(3), "", "", ""});
      continue;
    }
    if (made.sources.empty()) {
      std::istringstream words(line);
      std::string hash, key;
      words >> hash >> key;
      const std::size_t colon = line.find(": ");
      const std::string value = colon == std::string::npos ? "" : line.substr(colon + 2);
      if (key == "flags:") made.flags = value;
      if (key == "only:") made.only = value;
      if (key == "run:") made.run = value;
      if (key == "refuse:") std::istringstream(value) >> made.refuse_kind >> made.refuse_symbol;
      if (key == "says:") made.says = value;
      if (key == "note:") made.note = value;
      if (key == "keep:") made.keep = value;
      if (key == "replaced:") made.replaced = value;
      if (key == "accept:") made.accept = value;
      if (key == "nothing") made.nothing = true;
      continue;
    }
    Source& source = made.sources.back();
    const char mark = line.empty() ? ' ' : line[0];
    if (mark == '-' || mark == '+') {
      is_changed = true;
      (mark == '-' ? source.before : source.after) += " " + line.substr(1) + "\n";
      ++(mark == '-' ? before : after);
      hunk += std::string(1, mark) + " " + line.substr(1) + "\n";
    } else {
      source.before += line + "\n";
      source.after += line + "\n";
      ++before;
      ++after;
      hunk += " " + line + "\n";
    }
  }
  end_source();
  if (made.sources.empty()) throw std::runtime_error(path + " has no sources");
  return made;
}

}  // namespace molt::patch_test
