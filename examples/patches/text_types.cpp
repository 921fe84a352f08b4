// A livepatch for http-files: what is text is called text, and browsers are told to believe it. The two
// belong together: with the old type and the new header a browser would show nothing. So both functions
// change at once for every request, and one that is under way ends as it began.
//
//     molt apply -p PID text_types.so
#include <molt/livepatch.hpp>

#include <cstring>

#include "http_files/head.hpp"

namespace {

const char* new_media_type(const char* path) {
  const char* end = std::strrchr(path, '.');
  const bool is_text = end != nullptr && std::strcmp(end, ".txt") == 0;
  return is_text ? "text/plain" : "application/octet-stream";
}

void new_compose_head(int root, const char* path, int patience_s, http_files::Head* head) {
  http_files::await_file(root, path, patience_s);
  head->type = http_files::media_type(path);
  head->sniffing = "nosniff";
}

}  // namespace

MOLT_MODULE("text_types", "1.0", "Apache-2.0", "text is sent as such")
MOLT_PATCH(MOLT_PROGRAM(MOLT_REPLACE("_ZN10http_files10media_typeEPKc", new_media_type),
                        MOLT_REPLACE("_ZN10http_files12compose_headEiPKciPNS_4HeadE",
                                     new_compose_head)))
