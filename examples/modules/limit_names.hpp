// limit_names.hpp - the policy of limit_names and limit_opens: which names may be opened and created.
//
// Each parameter is a comma list of shell patterns (fnmatch(3)); "*" stands for any text, also across
// folders. A name is refused if it is denied, if it is not allowed, or, when the file would be
// created, if it may not be created. With the parameters' first values everything is allowed.
#pragma once

#include <molt/module.hpp>

#include <fcntl.h>
#include <fnmatch.h>

#include <cstring>
#include <string>

MOLT_PARAM(std::string, allow, "*", "patterns of names that may be opened", MOLT_WRITABLE)
MOLT_PARAM(std::string, deny, "", "patterns of names that may not, whatever allow says",
           MOLT_WRITABLE)
MOLT_PARAM(std::string, create, "*", "patterns of names that may be created", MOLT_WRITABLE)

namespace {

// Cuts the list in place: it is a copy, taken because `molt set` may change the parameter meanwhile.
bool matches(std::string patterns, const char* path) {
  for (char* next = patterns.data(); next != nullptr;) {
    char* pattern = strsep(&next, ",");
    if (fnmatch(pattern, path, 0) == 0) return true;
  }
  return false;
}

bool may_open(const char* path, int flags) {
  if (matches(deny.get(), path) || !matches(allow.get(), path)) return false;
  return (flags & O_CREAT) == 0 || matches(create.get(), path);
}

}  // namespace
