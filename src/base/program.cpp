#include "base/program.hpp"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/own_fd.hpp"

namespace molt {

std::string program_name() {
  const std::string own = program_invocation_short_name;
  const OwnFd fd = own_open("/proc/self/comm", O_RDONLY);
  char text[64];
  const ssize_t n = fd ? read(fd.get(), text, sizeof text) : -1;
  if (n <= 1) return own;
  const std::string name(text, static_cast<std::size_t>(n) - 1);
  return own.starts_with(name) ? own : name;
}

}  // namespace molt
