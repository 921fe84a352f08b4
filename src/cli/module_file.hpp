// module_file.hpp - a module's file as the user named it.
#pragma once

#include "base/fd.hpp"

#include <cstddef>
#include <string>
#include <vector>

namespace molt::cli {

// Read-only. Throws unless it is a regular file: opening a FIFO or a device could block or act.
Fd open_module_file(const std::string& path);

// All of it, not mapped: somebody might cut off the file meanwhile.
std::vector<std::byte> read_module_file(const std::string& path);

// Whether it hooks functions (molt/call.h), whose code is changed for that.
bool hooks_functions(const std::string& path);

}  // namespace molt::cli
