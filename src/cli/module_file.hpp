// module_file.hpp - a module's file as the user named it.
#pragma once

#include "cli/fd.hpp"

#include <string>

namespace molt::cli {

// Read-only. Throws unless it is a regular file: opening a FIFO or a device could block or act.
Fd open_module_file(const std::string& path);

}  // namespace molt::cli
