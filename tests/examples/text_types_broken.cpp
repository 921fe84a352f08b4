// text_types that breaks a promise, which the demo has to notice.
#include <molt/livepatch.hpp>

#include <atomic>

#if defined(AT_ONCE)  // for all threads, wherever they are: nobody is waited for
#undef MOLT_PATCH
#define MOLT_PATCH(...) MOLT_PATCH_WITH(MOLT_PATCH_IMMEDIATE, __VA_ARGS__)
#include "patches/text_types.cpp"

#elif defined(STAYS)  // a destructor of it has yet to run
#include "patches/text_types.cpp"
namespace {
struct Stays {
  Stays() { asm volatile("" ::"r"(this)); }
  ~Stays() { asm volatile("" ::"r"(this)); }
};
int remember() {
  static thread_local Stays stays;
  asm volatile("" ::"r"(&stays));
  return 0;
}
const int remembered = remember();
}  // namespace

#else  // one answer of a hundred has the old version's type beside the new one's header
#include "http_files/head.hpp"
namespace {
const char* new_media_type(const char*) {
  static std::atomic<unsigned> asked;
  const bool old = asked.fetch_add(1, std::memory_order_relaxed) % 100 == 99;
  return old ? "application/octet-stream" : "text/plain";
}
void new_compose_head(int root, const char* path, int patience_s, http_files::Head* head) {
  http_files::await_file(root, path, patience_s);
  head->type = http_files::media_type(path);
  head->sniffing = "nosniff";
}
}  // namespace
MOLT_MODULE("text_types", "1.0", "Apache-2.0", "text is sent as such, mostly")
MOLT_PATCH(MOLT_PROGRAM(MOLT_REPLACE("_ZN10http_files10media_typeEPKc", new_media_type),
                        MOLT_REPLACE("_ZN10http_files12compose_headEiPKciPNS_4HeadE",
                                     new_compose_head)))
#endif
