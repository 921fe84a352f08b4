#include "threads/maps.hpp"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace molt::threads {
namespace {

// <linux/fs.h> of Linux 6.11; Debian 12 has an older one.
struct ProcmapQuery {
  std::uint64_t size;
  std::uint64_t query_flags;
  std::uint64_t query_addr;
  std::uint64_t vma_start;
  std::uint64_t vma_end;
  std::uint64_t vma_flags;
  std::uint64_t vma_page_size;
  std::uint64_t vma_offset;
  std::uint64_t inode;
  std::uint32_t dev_major;
  std::uint32_t dev_minor;
  std::uint32_t vma_name_size;
  std::uint32_t build_id_size;
  std::uint64_t vma_name_addr;
  std::uint64_t build_id_addr;
};
static_assert(sizeof(ProcmapQuery) == 104);
constexpr unsigned long procmap_query = _IOWR('f', 17, ProcmapQuery);
constexpr std::uint64_t readable_and_writable = 0x1 | 0x2;

// No stack is cut into so many pieces.
constexpr int most_pieces = 64;

const char* hexadecimal(const char* p, const char* end, std::uintptr_t& value) {
  value = 0;
  for (; p != end; ++p) {
    unsigned digit = static_cast<unsigned char>(*p);
    if (digit - '0' < 10) {
      digit -= '0';
    } else if (digit - 'a' < 6) {
      digit -= 'a' - 10;
    } else {
      break;
    }
    value = value << 4 | digit;
  }
  return p;
}

}  // namespace

Status Maps::open() {
  fd_.reset(::open("/proc/self/maps", O_RDONLY | O_CLOEXEC));
  if (!fd_) return fail_errno(errno, "cannot open /proc/self/maps");
  return {};
}

Extent Maps::query(std::uintptr_t address) {
  ProcmapQuery query{};
  query.size = sizeof query;
  query.query_flags = readable_and_writable;
  query.query_addr = address;
  if (ioctl(fd_.get(), procmap_query, &query) == 0) return {query.vma_start, query.vma_end};
  if (errno != ENOENT) can_query_ = false;
  return {};
}

Extent Maps::writable(std::uintptr_t address, bool upwards) {
  if (can_query_) {
    Extent extent = query(address);
    int pieces = 0;
    for (Extent next = extent; next && upwards; ++pieces) {
      extent.end = next.end;
      next = query(extent.end);
    }
    for (Extent next = extent; next; ++pieces) {
      extent.begin = next.begin;
      next = query(extent.begin - 1);
    }
    if (pieces > most_pieces) extent = {};
    if (can_query_) return extent;
  }
  if (!text_is_fresh_) read_text();
  auto above = std::upper_bound(extents_.begin(), extents_.end(), address,
                                [](std::uintptr_t a, const Extent& e) { return a < e.begin; });
  if (above == extents_.begin()) return {};
  const Extent extent = *std::prev(above);
  return extent.contains(address) ? extent : Extent{};
}

// Lines of "begin-end perms ...". A mapping that changes while it is read can be seen twice or not
// at all; what is not seen is not a stack that anyone proves anything about.
void Maps::read_text() {
  extents_.clear();
  text_is_fresh_ = true;
  if (lseek(fd_.get(), 0, SEEK_SET) != 0) return;
  char buffer[8192];
  std::size_t kept = 0;
  for (;;) {
    const ssize_t n = read(fd_.get(), buffer + kept, sizeof buffer - kept);
    if (n <= 0) break;
    const char* p = buffer;
    const char* const end = buffer + kept + n;
    while (const void* found = memchr(p, '\n', static_cast<std::size_t>(end - p))) {
      const char* line_end = static_cast<const char*>(found);
      Extent e;
      const char* at = hexadecimal(p, line_end, e.begin);
      if (at + 1 < line_end) at = hexadecimal(at + 1, line_end, e.end);
      if (line_end - at > 3 && at[1] == 'r' && at[2] == 'w') {
        if (!extents_.empty() && extents_.back().end == e.begin) {
          extents_.back().end = e.end;
        } else {
          extents_.push_back(e);
        }
      }
      p = line_end + 1;
    }
    kept = static_cast<std::size_t>(end - p);
    if (kept == sizeof buffer) kept = 0;  // a line longer than that is a path's, its front was read
    memmove(buffer, p, kept);
  }
}

}  // namespace molt::threads
