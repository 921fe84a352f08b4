#include "arch/x86_64/maps.hpp"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/memory.hpp"
#include "base/own_fd.hpp"

namespace molt::arch {
namespace {

// "55d0-55d1 r-xp 00000000 fd:00 1234   /path", without the newline, 0-terminated.
bool parse(char* line, Mapping& out) {
  char* next;
  out.range.begin = std::strtoull(line, &next, 16);
  if (*next != '-') return false;
  out.range.end = std::strtoull(next + 1, &next, 16);
  if (*next != ' ' || std::strlen(next) < 5) return false;
  out.readable = next[1] == 'r';
  out.writable = next[2] == 'w';
  out.executable = next[3] == 'x';
  out.shared = next[4] == 's';
  char* name = next + 5;
  for (int field = 0; field < 3; ++field) {
    name += std::strspn(name, " ");
    name += std::strcspn(name, " ");
  }
  name += std::strspn(name, " ");
  std::size_t length = std::strlen(name);
  std::size_t most = sizeof out.name - 1;
  std::memcpy(out.name, name + (length > most ? length - most : 0), std::min(length, most));
  out.heap = std::strcmp(name, "[heap]") == 0;
  out.stack = std::strcmp(name, "[stack]") == 0;
  return true;
}

}  // namespace

Result<std::vector<Mapping>> read_maps() {
  const OwnFd fd = own_open("/proc/self/maps", O_RDONLY);
  if (!fd) return fail_errno(errno, "cannot open /proc/self/maps");
  std::vector<Mapping> maps;
  // Whole lines only: the kernel ends each read with one, and a path has 4095 bytes at most.
  Bytes buffer;
  if (!buffer.try_resize(16384 + 1)) return fail(ENOMEM, "no memory to read the mappings");
  std::size_t kept = 0;
  for (;;) {
    ssize_t got = read(fd.get(), buffer.data() + kept, 16384 - kept);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(errno, "cannot read /proc/self/maps");
    if (got == 0) break;
    auto* text = reinterpret_cast<char*>(buffer.data());
    std::size_t filled = kept + static_cast<std::size_t>(got);
    text[filled] = 0;
    char* line = text;
    while (char* newline = static_cast<char*>(
               std::memchr(line, '\n', filled - static_cast<std::size_t>(line - text)))) {
      *newline = 0;
      Mapping one;
      if (!parse(line, one)) return fail(EPROTO, "a line of /proc/self/maps is not understood");
      maps.push_back(one);
      line = newline + 1;
    }
    kept = filled - static_cast<std::size_t>(line - text);
    std::memmove(text, line, kept);
    if (kept == 16384) return fail(EPROTO, "a line of /proc/self/maps has no end");
  }
  return maps;
}

}  // namespace molt::arch
