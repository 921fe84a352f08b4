#include "audit/pages.hpp"
#include "base/own_fd.hpp"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace molt::audit {
namespace {

constexpr std::uintptr_t page_bytes = 4096;

// Linux 6.7's <linux/fs.h>, which Debian 12 does not have.
struct ScanArguments {
  std::uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  std::uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
struct ScanRegion {
  std::uint64_t start, end, categories;
};
constexpr unsigned long pagemap_scan = _IOWR('f', 16, ScanArguments);
constexpr std::uint64_t scan_protects = 1 << 0;          // PM_SCAN_WP_MATCHING
constexpr std::uint64_t scan_checks_protected = 1 << 1;  // PM_SCAN_CHECK_WPASYNC
constexpr std::uint64_t is_written = 1 << 1;
constexpr std::uint64_t is_file = 1 << 2;
constexpr std::uint64_t is_present = 1 << 3;
constexpr std::uint64_t is_swapped = 1 << 4;
constexpr std::uint64_t is_zero = 1 << 5;
constexpr std::uint64_t is_soft_dirty = 1 << 7;

constexpr std::uint64_t uffd_wp_async = 1 << 15;
constexpr int uffd_user_mode_only = 1;

// An entry of /proc/self/pagemap.
constexpr std::uint64_t entry_soft_dirty = std::uint64_t{1} << 55;
constexpr std::uint64_t entry_file = std::uint64_t{1} << 61;
constexpr std::uint64_t entry_swapped = std::uint64_t{1} << 62;
constexpr std::uint64_t entry_present = std::uint64_t{1} << 63;

// So that the lock of the address space is held for moments only: how much is walked, and how many
// pages are write-protected, in one call (Pages::walk_bytes).
// Where nothing is, no page tables are either: each walk may be twice as long as the one before.
constexpr std::uintptr_t empty_walk_bytes_max = std::uintptr_t{1} << 46;
constexpr std::uint64_t walk_pages = 2048;

// Below this, all of it is sooner read twice than protected once.
constexpr std::uint64_t worth_tracking_bytes = std::uint64_t{64} << 20;
// Above this, clearing soft-dirty bits would hold the program's page faults back for too long.
constexpr std::uint64_t soft_dirty_bytes_max = std::uint64_t{1} << 30;

// What the process has in memory that is not a file's, roughly.
std::uint64_t anonymous_bytes() {
  const OwnFd fd{Fd(::open("/proc/self/statm", O_RDONLY | O_CLOEXEC))};
  char text[128];
  const ssize_t n = fd ? read(fd.get(), text, sizeof text - 1) : -1;
  if (n <= 0) return 0;
  text[n] = '\0';
  unsigned long long resident = 0, shared = 0;
  std::sscanf(text, "%*u %llu %llu", &resident, &shared);
  return (resident - std::min(resident, shared)) * page_bytes;
}

// VmSwap of /proc/self/status; not 0 where that is not known.
std::uint64_t swapped_bytes() {
  const OwnFd fd{Fd(::open("/proc/self/status", O_RDONLY | O_CLOEXEC))};
  char text[4096];
  const ssize_t n = fd ? read(fd.get(), text, sizeof text - 1) : -1;
  if (n <= 0) return 1;
  text[n] = '\0';
  const char* at = std::strstr(text, "VmSwap:");
  unsigned long long kib = 1;
  if (at != nullptr) std::sscanf(at, "VmSwap: %llu", &kib);
  return kib * 1024;
}

}  // namespace

Status Pages::open(const Options& options) {
  pagemap_ = OwnFd(Fd(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)));
  if (options.no_pagemap) pagemap_.reset();
  if (!pagemap_) {
    swaps_ = swapped_bytes() != 0;
    if (options.method == Method::automatic || options.method == Method::rescan) return {};
    return fail(EOPNOTSUPP, "/proc/self/pagemap cannot be opened");
  }
  scans_ = !options.old_pagemap && can_scan();
  method_ = options.method;
  if (method_ == Method::automatic) {
    const std::uint64_t bytes = anonymous_bytes();
    if (bytes < worth_tracking_bytes) {
      method_ = Method::rescan;
    } else if (open_write_protection()) {
      method_ = Method::write_protect;
    } else if (bytes < soft_dirty_bytes_max && clear_soft_dirty()) {
      method_ = Method::soft_dirty;
    } else {
      method_ = Method::rescan;
    }
    return {};
  }
  if (method_ == Method::write_protect && !open_write_protection()) {
    return fail(EOPNOTSUPP, "no asynchronous write protection by userfaultfd here");
  }
  if (method_ == Method::soft_dirty && !clear_soft_dirty()) {
    return fail(EOPNOTSUPP, "no soft-dirty bits here");
  }
  return {};
}

bool Pages::can_scan() const {
  ScanRegion region;
  ScanArguments a{};
  a.size = sizeof a;
  a.start = reinterpret_cast<std::uintptr_t>(&region) & ~(page_bytes - 1);
  a.end = a.start + page_bytes;
  a.vec = reinterpret_cast<std::uintptr_t>(&region);
  a.vec_len = 1;
  a.category_mask = is_present;
  a.return_mask = is_present;
  return ioctl(pagemap_.get(), pagemap_scan, &a) >= 0;
}

bool Pages::open_write_protection() {
  if (!scans_) return false;
  Fd faults(
      static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | uffd_user_mode_only)));
  if (!faults) return false;
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = uffd_wp_async;
  if (ioctl(faults.get(), UFFDIO_API, &api) != 0) return false;
  faults_ = std::move(faults);
  return true;
}

bool Pages::clear_soft_dirty() const {
  const OwnFd fd{Fd(::open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC))};
  if (!fd) return false;
  // Writing succeeds whether or not the kernel has such bits: so look at a page of our own. Its bit
  // goes with the clearing and comes with a store.
  void* page =
      mmap(nullptr, page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return false;
  auto* byte = static_cast<volatile char*>(page);
  const auto address = reinterpret_cast<std::uintptr_t>(page);
  *byte = 1;
  bool works = (entry(address) & entry_soft_dirty) != 0 && fd.is_there() &&
               write(fd.get(), "4", 1) == 1 && (entry(address) & entry_soft_dirty) == 0;
  *byte = 2;
  works = works && (entry(address) & entry_soft_dirty) != 0;
  munmap(page, page_bytes);
  return works;
}

std::uint64_t Pages::entry(std::uintptr_t address) const {
  std::uint64_t value = 0;
  const ssize_t n = pread(pagemap_.get(), &value, sizeof value,
                          static_cast<off_t>(address / page_bytes * sizeof value));
  return n == sizeof value ? value : 0;
}

bool Pages::protect(Range whole) {
  auto is_in = [&](const std::vector<Range>& list) {
    return std::any_of(list.begin(), list.end(), [&](const Range& r) {
      return r.begin <= whole.begin && whole.end <= r.end;
    });
  };
  if (is_in(protected_)) return true;
  if (is_in(refused_)) return false;
  uffdio_register r{};
  r.range.start = whole.begin;
  r.range.len = whole.size();
  r.mode = UFFDIO_REGISTER_MODE_WP;
  const bool done = ioctl(faults_.get(), UFFDIO_REGISTER, &r) == 0;
  (done ? protected_ : refused_).push_back(whole);
  return done;
}

void Pages::add(Range run) {
  if (count_ != 0 && runs_[count_ - 1].end == run.begin) {
    runs_[count_ - 1].end = run.end;
  } else {
    runs_[count_++] = run;
  }
}

std::uintptr_t Pages::collect(std::uintptr_t begin, std::uintptr_t end, const Wanted& wanted) {
  count_ = 0;
  if (!pagemap_) return collect_by_mincore(begin, end);
  return scans_ ? collect_by_scan(begin, end, wanted) : collect_by_entries(begin, end, wanted);
}

// A process that gave up its privileges may not open its own pagemap. mincore() knows the pages that
// are in memory, not those that are swapped out: if there are any, all are searched.
std::uintptr_t Pages::collect_by_mincore(std::uintptr_t begin, std::uintptr_t end) {
  constexpr std::size_t most = 4096;
  unsigned char there[most];
  const std::size_t count = std::min<std::size_t>((end - begin) / page_bytes, most);
  if (mincore(reinterpret_cast<void*>(begin), count * page_bytes, there) != 0) {
    return begin + count * page_bytes;  // gone, at least in part; the next round looks again
  }
  std::size_t i = 0;
  for (; i < count && count_ < runs_max; ++i) {
    if (!swaps_ && (there[i] & 1) == 0) continue;
    add({begin + i * page_bytes, begin + (i + 1) * page_bytes});
  }
  return begin + i * page_bytes;
}

std::uintptr_t Pages::collect_by_scan(std::uintptr_t begin, std::uintptr_t end,
                                      const Wanted& wanted) {
  ScanRegion regions[runs_max];
  ScanArguments a{};
  a.size = sizeof a;
  a.start = begin;
  a.end = end - begin > walk_ ? begin + walk_ : end;
  a.vec = reinterpret_cast<std::uintptr_t>(regions);
  a.vec_len = runs_max;
  a.max_pages = walk_pages;
  a.category_mask = is_zero | (wanted.anonymous ? is_file : 0);
  a.category_inverted = a.category_mask;
  // In a protected mapping a page is "written" unless it was marked; so at first all are.
  if (wanted.unprotected) {
    a.flags = scan_checks_protected | (wanted.protect ? scan_protects : 0);
    a.category_mask |= is_written;
  } else if (wanted.soft_dirty) {
    a.category_mask |= is_soft_dirty;
  }
  a.category_anyof_mask = is_present | is_swapped;
  a.return_mask = is_present | is_swapped;
  int found = ioctl(pagemap_.get(), pagemap_scan, &a);
  if (found < 0 && wanted.unprotected) {
    // Another mapping has taken its place and is not watched: this time without.
    a.flags = 0;
    a.category_mask &= ~is_written;
    found = ioctl(pagemap_.get(), pagemap_scan, &a);
  }
  if (found < 0) return collect_by_entries(begin, a.end, {wanted.anonymous, false, false, false});
  for (int i = 0; i < found; ++i) add({regions[i].start, regions[i].end});
  walk_ = found > 0 ? walk_bytes : std::min(2 * walk_, empty_walk_bytes_max);
  return a.walk_end > begin ? a.walk_end : a.end;
}

std::uintptr_t Pages::collect_by_entries(std::uintptr_t begin, std::uintptr_t end,
                                         const Wanted& wanted) {
  constexpr std::size_t most = 512;
  std::uint64_t entries[most];
  const std::size_t asked = std::min<std::size_t>((end - begin) / page_bytes, most);
  const ssize_t got = pread(pagemap_.get(), entries, asked * sizeof *entries,
                            static_cast<off_t>(begin / page_bytes * sizeof *entries));
  // Not even that: every page of it, copying tells which can be read.
  if (got <= 0) {
    add({begin, end});
    return end;
  }
  const std::size_t count = static_cast<std::size_t>(got) / sizeof *entries;
  std::size_t i = 0;
  for (; i < count && count_ < runs_max; ++i) {
    const std::uint64_t e = entries[i];
    if ((e & (entry_present | entry_swapped)) == 0) continue;
    if (wanted.anonymous && (e & entry_file) != 0) continue;
    if (wanted.soft_dirty && (e & entry_soft_dirty) == 0) continue;
    add({begin + i * page_bytes, begin + (i + 1) * page_bytes});
  }
  return begin + i * page_bytes;
}

}  // namespace molt::audit
