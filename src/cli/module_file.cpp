#include "cli/module_file.hpp"

#include "cli/failure.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <system_error>

namespace molt::cli {

Fd open_module_file(const std::string& path) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd) {
    const int code = errno;
    fail(class_of_errno(code), code, "{}: {}", path, std::generic_category().message(code));
  }
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode)) {
    fail(ErrorClass::usage, EINVAL, "{}: not a regular file; name the module's file itself", path);
  }
  return fd;
}

}  // namespace molt::cli
