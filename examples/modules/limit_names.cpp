// limit_names - limits which file names may be opened and created.
//
//     molt load -p PID limit_names.so deny='*.key,/private/*' create='/incoming/*'
//     molt set  -p PID modules/limit_names/parameters/deny '*.key'
//
// Each parameter is a comma list of shell patterns (fnmatch(3)); "*" stands for any text, also across
// folders. A name is refused if it is denied, if it is not allowed, or, when the file would be
// created, if it may not be created. With the parameters' first values everything is allowed.

#include "../http_files/hooks.hpp"

#include <molt/module.hpp>

#include <fcntl.h>
#include <fnmatch.h>

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

int limit(const char* path, int flags, const char* /*client*/) {
  if (matches(deny.get(), path) || !matches(allow.get(), path)) return -EACCES;
  if ((flags & O_CREAT) != 0 && !matches(create.get(), path)) return -EACCES;
  return 0;
}

}  // namespace

MOLT_MODULE("limit_names", "1.0", "Apache-2.0", "limits which file names are opened and created")
MOLT_HOOK(http_files::open_point, limit)
