#include "cli/module_file.hpp"

#include "cli/failure.hpp"
#include "elf/image.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <system_error>

namespace molt::cli {
namespace {

// Larger than any module, smaller than what would exhaust memory.
constexpr std::size_t file_bytes_max = std::size_t{1} << 30;

[[noreturn]] void fail_on(const std::string& path, int code) {
  fail(class_of_errno(code), code, "{}: {}", path, std::generic_category().message(code));
}

}  // namespace

Fd open_module_file(const std::string& path) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd) fail_on(path, errno);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode)) {
    fail(ErrorClass::usage, EINVAL, "{}: not a regular file; name the module's file itself", path);
  }
  return fd;
}

std::vector<std::byte> read_module_file(const std::string& path) {
  const Fd fd = open_module_file(path);
  std::vector<std::byte> bytes;
  for (;;) {
    std::byte piece[65536];
    const ssize_t n = ::read(fd.get(), piece, sizeof piece);
    if (n == 0) return bytes;
    if (n < 0 && errno != EINTR) fail_on(path, errno);
    if (n > 0) bytes.insert(bytes.end(), piece, piece + n);
    if (bytes.size() > file_bytes_max) {
      fail(ErrorClass::refused, EFBIG, "{}: larger than 1 GiB; this is no module", path);
    }
  }
}

bool hooks_functions(const std::string& path) {
  const std::vector<std::byte> bytes = read_module_file(path);
  const auto image = elf::Image::parse(bytes, elf::Purpose::examine);
  if (!image) return false;  // the process says what is wrong with it
  for (const auto& note : image->module_notes()) {
    if (note.key != "hook") continue;
    if (note.value.substr(0, note.value.find(' ')).find(':') != std::string_view::npos) return true;
  }
  return false;
}

}  // namespace molt::cli
