#include "base/own_fd.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>

#include "base/torture_step.hpp"

namespace molt {
namespace {

// A descriptor table has 64 entries at first and 256 when it has grown (fs/file.c): the number is one that
// a table with `lowest_free` has without growing for us, and far from those that the host gets next.
constexpr int out_of_the_way(int lowest_free) { return lowest_free < 32 ? 48 : 200; }

bool is(int fd, dev_t device, ino_t inode) {
#ifdef MOLT_MUTATE_ANY_FD
  static_cast<void>(device), static_cast<void>(inode);
  return fd >= 0;
#else
  struct stat info {};
  return fstat(fd, &info) == 0 && info.st_dev == device && info.st_ino == inode;
#endif
}

}  // namespace

OwnFd::OwnFd(Fd fd, const struct stat* named) : fd_(std::move(fd)) {
  if (!fd_) return;
  OwnFd low;
  if (const int high = fcntl(fd_.get(), F_DUPFD_CLOEXEC, out_of_the_way(fd_.get())); high >= 0) {
    low.fd_ = std::exchange(fd_, Fd(high));
  }
  struct stat info {};
  if (fstat(fd_.get(), &info) != 0) {
    static_cast<void>(low.fd_.release());
    static_cast<void>(fd_.release());
    return;
  }
  device_ = low.device_ = info.st_dev;
  inode_ = low.inode_ = info.st_ino;
  if (named != nullptr && !is(fd_.get(), named->st_dev, named->st_ino)) {
    // The host's. Of a copy of ours, if there is one, it has no need.
    if (low.fd_) fd_.reset();
    static_cast<void>(low.fd_.release());
    static_cast<void>(fd_.release());
  }
}

bool OwnFd::is_there() const { return fd_ && is(fd_.get(), device_, inode_); }

bool OwnFd::is_new_memfd() const {
  struct stat info {};
  return fd_ && fstat(fd_.get(), &info) == 0 && info.st_size == 0 && info.st_nlink == 0 &&
         fcntl(fd_.get(), F_GET_SEALS) >= 0;
}

OwnFd OwnFd::numbered(int least) const {
  OwnFd other;
  other.fd_.reset(fcntl(fd_.get(), F_DUPFD_CLOEXEC, least));
  other.device_ = device_;
  other.inode_ = inode_;
  return other;
}

OwnFd own_open(const char* path, int flags, mode_t mode) {
  const int fd = ::open(path, flags | O_CLOEXEC, mode);
  if (fd < 0) return {};
  MOLT_TORTURE_STEP(400);
  struct stat named {};
  if (::stat(path, &named) != 0) named = {};
  OwnFd own(Fd(fd), &named);
  if (!own) errno = EBADF;
  return own;
}

}  // namespace molt
