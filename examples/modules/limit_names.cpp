// limit_names - limits which file names may be opened and created.
//
//     molt load -p PID limit_names.so deny='*.key,/private/*' create='/incoming/*'
//     molt set  -p PID modules/limit_names/parameters/deny '*.key'

#include "limit_names.hpp"
#include "../http_files/hooks.hpp"

namespace {

int limit(const char* path, int flags, const char* /*client*/) {
  return may_open(path, flags) ? 0 : -EACCES;
}

}  // namespace

MOLT_MODULE("limit_names", "1.0", "Apache-2.0", "limits which file names are opened and created")
MOLT_HOOK(http_files::open_point, limit)
