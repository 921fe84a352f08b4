#include "module/store.hpp"

#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>

#include "base/directory.hpp"
#include "base/fd.hpp"
#include "base/log.hpp"
#include "base/own_fd.hpp"
#include "module/internal.hpp"

namespace molt::module {
namespace {

struct Names {
  std::mutex mutex;
  // By their number, which is in the name of a loaded object. Open until that is mapped.
  std::map<int, OwnFd> memfds;
};
Names& names() {
  static Names* n = new Names;
  return *n;
}

// A file-size limit is answered by a signal that ends the process, unless it is blocked.
class FileSizeSignalBlocked {
 public:
  FileSizeSignalBlocked() {
    sigemptyset(&signal_);
    sigaddset(&signal_, SIGXFSZ);
    pthread_sigmask(SIG_BLOCK, &signal_, &before_);
  }
  ~FileSizeSignalBlocked() {
    timespec now{};
    if (!sigismember(&before_, SIGXFSZ)) sigtimedwait(&signal_, nullptr, &now);
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }

 private:
  sigset_t signal_, before_;
};

Status write_all(const OwnFd& fd, std::span<const std::byte> content) {
  FileSizeSignalBlocked blocked;
  while (!content.empty()) {
    // Never to a file that the host has opened under the number since.
    if (!fd.is_there()) return fail(EBADF, "the process has closed the module's copy; try again");
    ssize_t n = write(fd.get(), content.data(), content.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return fail_errno(n < 0 ? errno : EIO, "writing the module's copy");
    content = content.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

// The dynamic loader compares names first and would answer with an object that is loaded still, whose
// file somebody has removed.
bool is_loaded(const std::string& path) {
  const auto has_name = [](dl_phdr_info* info, std::size_t, void* name) {
    return int{std::strcmp(info->dlpi_name, static_cast<const char*>(name)) == 0};
  };
  return dl_iterate_phdr(has_name, const_cast<char*>(path.c_str())) != 0;
}

Result<Stored> in_directory(std::span<const std::byte> content, const std::string& hash) {
  Result<std::string> base = process_directory(manager().directory);
  if (!base) return pass(base);
  std::string folder = *base + "/store";
  if (mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) {
    return fail_errno(errno, "cannot make %s", folder.c_str());
  }
  if (!allows_exec(folder)) return fail(EACCES, "%s is mounted noexec", folder.c_str());
  for (unsigned n = 0; n < 100'000; ++n) {
    std::string path = folder + "/" + hash + (n ? "-" + std::to_string(n) : "") + ".so";
    if (is_loaded(path)) continue;
    const OwnFd fd = own_open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
    if (!fd) {
      if (errno == EEXIST) continue;
      if (errno == EBADF) unlink(path.c_str());  // made, and closed by the host
      return fail_errno(errno, "cannot make %s", path.c_str());
    }
    Status written = write_all(fd, content);
    // Executable and read-only: nobody shall write to what is mapped.
    if (written && (!fd.is_there() || fchmod(fd.get(), 0500) != 0)) {
      written = fail_errno(errno, "chmod of the copy");
    }
    if (!written) {
      unlink(path.c_str());
      return pass(written);
    }
    return Stored{path, false};
  }
  return fail(EMFILE, "100000 copies of one module in %s", folder.c_str());
}

// The name "/proc/self/fd/N" must not be that of an object that is still loaded: the dynamic loader
// compares names first and would answer with the old object. So N is chosen free of those. The
// descriptor is closed by store_mapped() once the object is mapped.
Result<Stored> in_memory(std::span<const std::byte> content, const std::string& hash) {
  if (access("/proc/self/fd", X_OK) != 0 && errno == ENOENT) {
    return fail(ENOTSUP, "a copy in memory has no name: there is no /proc in its root; mount one");
  }
  OwnFd made(Fd(memfd_create(("molt:" + hash).c_str(), MFD_CLOEXEC)));
  if (!made) return fail_errno(errno, "cannot make a memfd");
  if (!made.is_new_memfd())
    return fail(EBADF, "the process has closed the module's copy; try again");
  if (Status ok = write_all(made, content); !ok) return pass(ok);
  Names& n = names();
  std::lock_guard lock(n.mutex);
  for (int number = made.get(); made.is_there(); ++number) {
    while (n.memfds.count(number)) ++number;
    OwnFd numbered = made.numbered(number);
    if (!numbered) return fail_errno(errno, "cannot number the memfd");
    const int got = numbered.get();
    if (n.memfds.count(got)) continue;
    n.memfds.emplace(got, std::move(numbered));
    return Stored{"/proc/self/fd/" + std::to_string(got), true};
  }
  return fail(EBADF, "the process has closed the module's copy; try again");
}

int memfd_number(const Stored& stored) {
  return atoi(stored.path.c_str() + stored.path.rfind('/') + 1);
}

}  // namespace

Result<Stored> store_copy(std::span<const std::byte> content, const std::string& hash) {
  Result<Stored> stored = in_directory(content, hash);
  if (stored) return stored;
  Result<Stored> memory = in_memory(content, hash);
  if (memory) {
    log::line("", "store: %s; loading from memory instead", stored.error().detail);
    return memory;
  }
  if (memory.error().code == EBADF) return memory;  // the host, which has done it to both
  // The reason for each folder may be cut off.
  return fail(memory.error().code, "%s; and on disk: %s", memory.error().detail,
              stored.error().detail);
}

void store_mapped(const Stored& stored) {
  if (!stored.in_memory) return;
  std::lock_guard lock(names().mutex);
  names().memfds[memfd_number(stored)].reset();
}

void store_forget(const Stored& stored) {
  if (!stored.in_memory) {
    unlink(stored.path.c_str());
    return;
  }
  std::lock_guard lock(names().mutex);
  names().memfds.erase(memfd_number(stored));
}

int cause_of(const std::string& complaint, int code) {
  const auto says = [&](const char* words) { return complaint.find(words) != std::string::npos; };
  for (const int lack : {ENOMEM, EMFILE, ENFILE}) {
    if (code == lack || says(strerror(lack))) return lack;
  }
  if (code == EBADF) return EBADF;
  // The name of a memfd that is closed leads nowhere.
  if (complaint.find("/proc/") != std::string::npos && says(strerror(ENOENT))) return EBADF;
  for (const char* words :
       {"Bad file descriptor", "invalid ELF header", "file too short", "cannot read file data",
        "cannot stat shared object", "failed to map segment"}) {
    if (says(words)) return EBADF;
  }
  return ENOEXEC;
}

}  // namespace molt::module
