#include "arch/x86_64/text.hpp"

#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "arch/x86_64/refuse.hpp"

namespace molt::arch {
namespace {

constexpr std::size_t page_size = 4096;

bool membarrier(int command) { return syscall(SYS_membarrier, command, 0, 0) == 0; }

// Taking a right away from a page that is in use flushes it from every core that runs this process,
// by an interrupt, and the return from an interrupt serialises. Cores that run something else come
// back by a context switch. Where the processor broadcasts flushes (INVLPGB) there is no interrupt.
bool shootdown() {
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid(0x80000008, &eax, &ebx, &ecx, &edx) && (ebx & (1u << 3)) != 0) return false;
  void* page = mmap(nullptr, page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return false;
  *static_cast<volatile char*>(page) = 1;
  bool done = mprotect(page, page_size, PROT_READ) == 0;
  munmap(page, page_size);
  return done;
}

// For tests of the fallbacks; looked at once.
bool without_membarrier() {
  static const bool denied = getenv("MOLT_NO_MEMBARRIER") != nullptr;
  return denied;
}
bool without_proc_mem() {
  static const bool denied = getenv("MOLT_NO_PROC_MEM") != nullptr;
  return denied;
}

}  // namespace

void text_setup() {
  if (!without_membarrier()) {
    membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE);
  }
}

bool serialise_cores() {
  if (!without_membarrier()) {
    if (membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE)) return true;
    // Not registered: the first time, or in a forked child.
    if (errno == EPERM) {
      text_setup();
      if (membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE)) return true;
    }
  }
  return shootdown();
}

namespace {
OwnFd open_mem() {
  if (without_proc_mem()) return {};
  return own_open("/proc/self/mem", O_RDWR);
}
}  // namespace

TextWriter TextWriter::open() {
  TextWriter writer;
  writer.mem_ = open_mem();
  return writer;
}

const Mapping* TextWriter::find(CodeAddress address) const {
  auto after = std::upper_bound(
      maps_.begin(), maps_.end(), address,
      [](CodeAddress a, const Mapping& mapping) { return a < mapping.range.begin; });
  if (after == maps_.begin() || !(after - 1)->range.contains(address)) return nullptr;
  return &*(after - 1);
}

Status TextWriter::check(CodeRange range) {
  for (CodeAddress at = range.begin; at < range.end;) {
    const Mapping* mapping = find(at);
    if (mapping == nullptr) {
      // Unknown, or newer than the snapshot.
      auto maps = read_maps();
      if (!maps) return pass(maps);
      maps_ = std::move(*maps);
      mapping = find(at);
    }
    if (mapping == nullptr || !mapping->executable) {
      return refuse(Refusal::not_mapped, "%#zx is not in executable memory", at);
    }
    if (mapping->shared) {
      return refuse(Refusal::shared_mapping,
                    "%s is mapped shared: a change would be seen by other processes",
                    mapping->name[0] ? mapping->name : "its memory");
    }
    at = mapping->range.end;
  }
  return {};
}

#ifdef MOLT_FAULTS
int fail_write_after = -1;   // so many more writes work, then one does not
bool fail_for_good = false;  // nor any other
#endif

Status TextWriter::write(CodeAddress address, std::span<const std::byte> bytes) {
#ifdef MOLT_FAULTS
  if (fail_write_after >= 0 && fail_write_after-- == 0) {
    if (fail_for_good) fail_write_after = 0;
    return fail(EIO, "as the test wants it");
  }
#endif
  if (mem_ && !mem_.is_there()) mem_ = open_mem();
  if (mem_) {
    std::size_t done = 0;
    std::byte before[page_size];
    std::size_t kept = std::min(bytes.size(), sizeof before);
    std::memcpy(before, reinterpret_cast<const void*>(address), kept);
    while (done < bytes.size()) {
      ssize_t wrote = pwrite(mem_.get(), bytes.data() + done, bytes.size() - done,
                             static_cast<off_t>(address + done));
      if (wrote > 0) {
        done += static_cast<std::size_t>(wrote);
      } else if (wrote == 0 || errno != EINTR) {
        break;
      }
    }
    if (done == bytes.size()) return {};
    int why = errno;
    // What was written of a stretch over two pages goes back.
    if (done > 0) {
      (void)!pwrite(mem_.get(), before, std::min(done, kept), static_cast<off_t>(address));
    }
    mem_.reset();
    if (done > 0) return fail_errno(why, "writing to code at %#zx broke off", address);
  }
  return replace_pages(address, bytes);
}

namespace {

// Memory that is executable from the start, by way of a file: where none may become it later (PR_SET_MDWE,
// systemd's MemoryDenyWriteExecute). nullptr, with the reason in errno.
void* map_executable(const void* content, std::size_t size) {
  // A limit on file sizes holds here too, and is enforced by a deadly signal.
  rlimit limit{};
  if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur < size) return errno = EFBIG, nullptr;
  const OwnFd file(Fd(memfd_create("molt-code", MFD_CLOEXEC)));
  if (!file) return nullptr;
  if (!file.is_new_memfd()) return errno = EBADF, nullptr;
  const ssize_t wrote = pwrite(file.get(), content, size, 0);
  if (wrote < 0) return nullptr;
  if (wrote != static_cast<ssize_t>(size)) return errno = ENOSPC, nullptr;
  void* got = mmap(nullptr, size, PROT_READ | PROT_EXEC, MAP_PRIVATE, file.get(), 0);
  if (got == MAP_FAILED) return nullptr;
  // Of what the host has opened under that number meanwhile not even the size is known.
  if (file.is_there() && std::memcmp(got, content, size) == 0) return got;
  munmap(got, size);
  return errno = EBADF, nullptr;
}

}  // namespace

Status TextWriter::replace_pages(CodeAddress address, std::span<const std::byte> bytes) {
  CodeAddress first = address & ~(page_size - 1);
  CodeAddress end = (address + bytes.size() + page_size - 1) & ~(page_size - 1);
  std::size_t size = end - first;
  void* copy = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (copy == MAP_FAILED) return fail_errno(errno, "no memory to replace a page of code");
  std::memcpy(copy, reinterpret_cast<const void*>(first), size);
  std::memcpy(static_cast<std::byte*>(copy) + (address - first), bytes.data(), bytes.size());
  bool is_executable = mprotect(copy, size, PROT_READ | PROT_EXEC) == 0;
  if (!is_executable && (errno == EACCES || errno == EPERM)) {
    if (void* other = map_executable(copy, size)) {
      munmap(copy, size);
      copy = other;
      is_executable = true;
    }
  }
  if (!is_executable || mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED,
                               reinterpret_cast<void*>(first)) == MAP_FAILED) {
    int why = errno;
    munmap(copy, size);
    return fail_errno(why,
                      "code at %#zx can be written neither by /proc/self/mem nor by replacing "
                      "its page",
                      address);
  }
  return {};
}

}  // namespace molt::arch
