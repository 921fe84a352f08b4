// limit_names with what keeps a library mapped although dlclose() reports success: a thread_local
// object whose destructor has yet to run. The demo has to notice.
#include "modules/limit_names.cpp"

namespace {

struct Sticky {
  ~Sticky() { asm volatile("" ::"r"(this)); }
};
thread_local Sticky sticky;

void touch(const char*, const char*, const char*) { asm volatile("" ::"r"(&sticky)); }

}  // namespace

MOLT_HOOK(http_files::request_point, touch)
