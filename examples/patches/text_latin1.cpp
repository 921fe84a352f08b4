// Stacked on text_types: one of its functions is replaced once more, the other stays.
#include <molt/livepatch.hpp>

#include <cstring>

namespace {

const char* new_media_type(const char* path) {
  const char* end = std::strrchr(path, '.');
  const bool is_text = end != nullptr && std::strcmp(end, ".txt") == 0;
  return is_text ? "text/plain; charset=iso-8859-1" : "application/octet-stream";
}

}  // namespace

MOLT_MODULE("text_latin1", "1.0", "Apache-2.0", "text is sent as Latin-1")
MOLT_PATCH(MOLT_PROGRAM(MOLT_REPLACE("_ZN10http_files10media_typeEPKc", new_media_type)))
