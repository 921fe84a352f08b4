// own_fd.hpp - a descriptor of ours in the host's table, where a host that closes all it knows nothing of
// may close it, and have another file under its number.
//
// Its number is out of the way, so that one that the host opens next is not it. is_there() before it is
// written to says whether it still is that file; what has its number now is not closed. Between the look
// and the use there is a moment left in which the host would have to close many numbers and open as
// many.
//
// It is born with the lowest number that is free, which the host gets next. So own_open() compares what
// it has, once that is out of the way, with what the name leads to: if the host was quicker, nothing is closed,
// and it fails with EBADF. What is left are the nanoseconds between a look at the low number and its close().
#pragma once

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "base/fd.hpp"

namespace molt {

class OwnFd {
 public:
  OwnFd() = default;
  // `named`: what it must be; without, it is what it is.
  explicit OwnFd(Fd fd, const struct stat* named = nullptr) : fd_(std::move(fd)) {
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
    if (named != nullptr && (named->st_dev != device_ || named->st_ino != inode_)) {
      // The host's. Of a copy of ours, if there is one, it has no need.
      if (low.fd_) fd_.reset();
      static_cast<void>(low.fd_.release());
      static_cast<void>(fd_.release());
    }
  }
  OwnFd(OwnFd&& other) noexcept = default;
  OwnFd& operator=(OwnFd&& other) noexcept {
    let_go();
    fd_ = std::move(other.fd_);
    device_ = other.device_;
    inode_ = other.inode_;
    return *this;
  }
  ~OwnFd() { let_go(); }

  int get() const { return fd_.get(); }
  explicit operator bool() const { return static_cast<bool>(fd_); }
  bool is_there() const {
    struct stat info {};
    return fd_ && fstat(fd_.get(), &info) == 0 && info.st_dev == device_ && info.st_ino == inode_;
  }
  // As memfd_create() has made it, and nobody has written to it.
  bool is_new_memfd() const {
    struct stat info {};
    return fd_ && fstat(fd_.get(), &info) == 0 && info.st_size == 0 && info.st_nlink == 0 &&
           fcntl(fd_.get(), F_GET_SEALS) >= 0;
  }
  void reset() { let_go(); }
  // The same file once more, under that number or a higher one.
  OwnFd numbered(int least) const {
    OwnFd other;
    other.fd_.reset(fcntl(fd_.get(), F_DUPFD_CLOEXEC, least));
    other.device_ = device_;
    other.inode_ = inode_;
    return other;
  }

 private:
  // A descriptor table has 64 entries at first and 256 when it has grown (fs/file.c): the number is one that
  // a table with `lowest_free` has without growing for us, and far from those that the host gets next.
  static constexpr int out_of_the_way(int lowest_free) { return lowest_free < 32 ? 48 : 200; }

  void let_go() {
    if (fd_ && !is_there()) static_cast<void>(fd_.release());
    fd_.reset();
  }

  Fd fd_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

// As open(), with O_CLOEXEC.
inline OwnFd own_open(const char* path, int flags, mode_t mode = 0) {
  const int fd = ::open(path, flags | O_CLOEXEC, mode);
  if (fd < 0) return {};
  struct stat named {};
  if (::stat(path, &named) != 0) named = {};
  OwnFd own(Fd(fd), &named);
  if (!own) errno = EBADF;
  return own;
}

}  // namespace molt
