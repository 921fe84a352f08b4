#include "threads/procfs.hpp"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/fd.hpp"

namespace molt::threads {
namespace {

// pread() is a cancellation point, at a cost, and nobody cancels the census thread.
ssize_t read_front(int fd, char* text, std::size_t size) {
  return syscall(SYS_pread64, fd, text, size, 0);
}

struct Text {
  const char* at;
  const char* end;

  void skip_blanks() {
    while (at != end && *at == ' ') ++at;
  }
  bool decimal(std::uint64_t& value) {
    skip_blanks();
    const char* from = at;
    value = 0;
    for (; at != end && *at >= '0' && *at <= '9'; ++at) {
      value = value * 10 + static_cast<unsigned>(*at - '0');
    }
    return at != from;
  }
  // "0x7ff..." as the kernel writes it, in lower case.
  bool hexadecimal(std::uint64_t& value) {
    skip_blanks();
    if (end - at < 3 || at[0] != '0' || at[1] != 'x') return false;
    at += 2;
    const char* from = at;
    value = 0;
    for (; at != end; ++at) {
      unsigned digit = static_cast<unsigned char>(*at) - unsigned{'0'};
      if (digit > 9) {
        digit = static_cast<unsigned char>(*at) - unsigned{'a'};
        if (digit > 5) break;
        digit += 10;
      }
      value = value << 4 | digit;
    }
    return at != from;
  }
  bool after(const char* key) {
    const void* found = memmem(at, static_cast<std::size_t>(end - at), key, strlen(key));
    if (found == nullptr) return false;
    at = static_cast<const char*>(found) + strlen(key);
    while (at != end && (*at == '\t' || *at == ' ')) ++at;
    return true;
  }
};

}  // namespace

Snapshot parse_syscall(const char* text, std::size_t length) {
  Snapshot s;
  Text t{text, text + length};
  if (length >= 7 && memcmp(text, "running", 7) == 0) {
    s.kind = Snapshot::running;
    return s;
  }
  const bool outside = length > 0 && *text == '-';
  t.at += outside;
  std::uint64_t number, sp, pc;
  if (!t.decimal(number)) return s;
  if (!outside) {
    for (auto& argument : s.arguments) {
      if (!t.hexadecimal(argument)) return s;
    }
    s.number = static_cast<long>(number);
  }
  if (!t.hexadecimal(sp) || !t.hexadecimal(pc)) return s;
  s.sp = sp;
  s.pc = pc;
  // A zombie has no registers any more; neither have the kernel's own workers.
  if (sp == 0 && pc == 0) {
    s.kind = Snapshot::gone;
  } else {
    s.kind = outside ? Snapshot::stopped : Snapshot::sleeping;
  }
  return s;
}

Snapshot read_syscall(int fd) {
  char text[256];
  const ssize_t n = read_front(fd, text, sizeof text);
  if (n > 0) return parse_syscall(text, static_cast<std::size_t>(n));
  Snapshot s;
  s.error = n < 0 ? errno : EIO;
  if (n < 0 && errno == ESRCH) s.kind = Snapshot::gone;
  return s;
}

bool parse_run_count(const char* text, std::size_t length, std::uint64_t& count) {
  Text t{text, text + length};
  std::uint64_t ran, waited;
  return t.decimal(ran) && t.decimal(waited) && t.decimal(count);
}

bool read_run_count(int fd, std::uint64_t& count) {
  char text[96];
  const ssize_t n = read_front(fd, text, sizeof text);
  if (n <= 0) return false;
  return parse_run_count(text, static_cast<std::size_t>(n), count);
}

bool read_switch_count(int tid, std::uint64_t& count) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
  const Fd fd(open(path, O_RDONLY | O_CLOEXEC));
  if (!fd) return false;
  char text[4096];
  const ssize_t n = read(fd.get(), text, sizeof text);
  if (n <= 0) return false;
  Text t{text, text + n};
  std::uint64_t voluntary, other;
  if (!t.after("\nvoluntary_ctxt_switches:") || !t.decimal(voluntary)) return false;
  if (!t.after("\nnonvoluntary_ctxt_switches:") || !t.decimal(other)) return false;
  count = voluntary + other;
  return true;
}

bool read_stat_fields(int fd, std::span<std::uint64_t> fields) {
  char text[1024];
  const ssize_t n = read_front(fd, text, sizeof text - 1);
  if (n <= 0) return false;
  text[n] = '\0';
  // The name is in parentheses, and may have some of its own.
  const char* at = strrchr(text, ')');
  for (std::size_t i = 3; i < fields.size() && at != nullptr; ++i) {
    at = strchr(at + 1, ' ');
    if (at == nullptr) break;
    Text t{at, text + n};
    t.decimal(fields[i]);  // the third is a letter, and some are negative: 0
  }
  return at != nullptr;
}

std::uint64_t read_stat_field(const char* path, int field) {
  constexpr int most_fields = 53;
  std::uint64_t fields[most_fields] = {};
  const Fd fd(open(path, O_RDONLY | O_CLOEXEC));
  if (!fd || field >= most_fields) return 0;
  const auto wanted = static_cast<std::size_t>(field);
  return read_stat_fields(fd.get(), {fields, wanted + 1}) ? fields[wanted] : 0;
}

std::string thread_name(int tid) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/task/%d/comm", tid);
  const Fd fd(open(path, O_RDONLY | O_CLOEXEC));
  char name[32];
  ssize_t n = fd ? read(fd.get(), name, sizeof name) : -1;
  if (n > 0 && name[n - 1] == '\n') --n;
  return n > 0 ? std::string(name, static_cast<std::size_t>(n)) : "";
}

}  // namespace molt::threads
