#include "head.hpp"

namespace http_files {

void compose_head(int root, const char* path, int patience_s, Head* head) {
  await_file(root, path, patience_s);
  head->type = media_type(path);
  head->sniffing = nullptr;
}

}  // namespace http_files
