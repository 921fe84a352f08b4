// Cumulative: takes the place of all patches that are there, in one step. What it leaves out, the
// function that sends the header, is the server's own again.
#include <molt/livepatch.hpp>

#include <cstring>

namespace {

const char* new_media_type(const char* path) {
  const char* end = std::strrchr(path, '.');
  const bool is_text = end != nullptr && std::strcmp(end, ".txt") == 0;
  return is_text ? "text/plain; charset=utf-8" : "application/octet-stream";
}

}  // namespace

MOLT_MODULE("text_utf8", "2.0", "Apache-2.0", "text is sent as UTF-8")
MOLT_PATCH_WITH(MOLT_PATCH_REPLACE,
                MOLT_PROGRAM(MOLT_REPLACE("_ZN10http_files10media_typeEPKc", new_media_type)))
