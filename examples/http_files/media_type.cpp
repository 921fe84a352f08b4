#include "head.hpp"

namespace http_files {

// Browsers offer this for download, whatever it is. Livepatches know better.
const char* media_type(const char*) { return "application/octet-stream"; }

}  // namespace http_files
