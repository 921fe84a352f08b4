// diff_header.hpp - what a diff says of itself in front of its first hunk: the mail of git format-patch, or
// the fields of Debian's patches (DEP-3). It goes into the patch file, so that this says whose fix it is.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace molt::builder {

struct DiffHeader {
  std::string description;              // its first line, without "[PATCH 1/2]"
  std::string author;                   // "NAME <MAIL>"
  std::vector<std::string> signed_off;  // the same, in the order of the lines
  std::vector<std::string> cves;        // of the description and `name`, the diff's file name
};

DiffHeader read_diff_header(std::string_view text, std::string_view name);

}  // namespace molt::builder
