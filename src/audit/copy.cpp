#include "audit/copy.hpp"

#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/own_memory.hpp"

namespace molt::audit {
namespace {

// Of all audits, one after the other; its descriptor is closed in between, as the host counts those.
void* g_window = nullptr;

}  // namespace

Status Copy::open() {
  // The same addresses for ever: they are listed as the runtime's own.
  if (g_window == nullptr) {
    constexpr std::size_t all = bytes_max + scratch_bytes;
    void* window = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (window == MAP_FAILED) return fail_errno(errno, "no memory to search memory");
    note_own_memory(window, all);
    g_window = window;
  }
  words_ = static_cast<std::uint64_t*>(g_window);
  if (share_memory()) return {};
  // A forked child finds its parent's memfd there.
  if (!unshare_memory()) return fail_errno(errno, "no memory to search memory");
  return {};
}

bool Copy::unshare_memory() {
  is_shared_ = false;
  return mmap(g_window, bytes_max, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
              -1, 0) != MAP_FAILED;
}

bool Copy::share_memory() {
  // A limit on file sizes holds for a memfd too, and is enforced by a deadly signal.
  rlimit limit{};
  if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur < bytes_max) return false;
  OwnFd memory(Fd(memfd_create("molt:audit", MFD_CLOEXEC)));
  if (!memory.is_new_memfd() || ftruncate(memory.get(), bytes_max) != 0) return false;
  void* mapped =
      mmap(words_, bytes_max, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory.get(), 0);
  if (mapped == MAP_FAILED) return false;
  is_shared_ = true;
  memory_ = std::move(memory);
  return usable_ = memory_.is_there();
}

Copy::~Copy() {
  // Gives the memfd's pages back; the addresses stay taken.
  if (is_shared_) (void)unshare_memory();
}

std::size_t Copy::take(std::uintptr_t from, std::size_t bytes) {
  if (bytes > bytes_max) bytes = bytes_max;
  long done = -1;
  // The calls themselves: a sanitizer's wrappers would look at what they read.
  if (usable_) {
    usable_ = memory_.is_there();
    if (usable_) done = syscall(SYS_pwrite64, memory_.get(), from, bytes, 0L);
    if ((done < 0 && errno != EFAULT) || !memory_.is_there()) usable_ = false;
  }
  if (!usable_) {
    // What is mapped there may be a file of the host's.
    if (is_shared_ && !unshare_memory()) return 0;
    iovec to{words_, bytes};
    iovec what{reinterpret_cast<void*>(from), bytes};
    done = syscall(SYS_process_vm_readv, getpid(), &to, 1L, &what, 1L, 0L);
  }
  return done < 0 ? 0 : static_cast<std::size_t>(done) & ~std::size_t{7};
}

std::optional<std::uint64_t> Copy::word(std::uintptr_t address) {
  if (take(address, sizeof(std::uint64_t)) != sizeof(std::uint64_t)) return std::nullopt;
  return words_[0];
}

}  // namespace molt::audit
