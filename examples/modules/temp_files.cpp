// temp_files - detects likely mistakes with temporary files.
//
//     molt load -p PID temp_files.so mode=refuse directories=/tmp:/var/tmp
//     molt set  -p PID modules/temp_files/parameters/mode log

#include "temp_files.hpp"
#include "../http_files/hooks.hpp"

namespace {

int check(const char* path, int flags, const char* client) {
  if (!is_mistake(path, flags)) return 0;
  Reaction what = mode.get();
  molt_log(&molt_this_module, "%s: a name that others can guess, created without O_EXCL for %s%s",
           path, client, what == Reaction::refuse ? ": refused" : "");
  return what == Reaction::refuse ? -EACCES : 0;
}

}  // namespace

MOLT_MODULE("temp_files", "1.0", "Apache-2.0", "detects likely mistakes with temporary files")
MOLT_HOOK(http_files::open_point, check)
