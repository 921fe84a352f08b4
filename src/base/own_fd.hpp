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

#include <sys/stat.h>
#include <sys/types.h>

#include <utility>

#include "base/fd.hpp"

namespace molt {

class OwnFd {
 public:
  OwnFd() = default;
  // `named`: what it must be; without, it is what it is.
  explicit OwnFd(Fd fd, const struct stat* named = nullptr);
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
  bool is_there() const;
  // As memfd_create() has made it, and nobody has written to it.
  bool is_new_memfd() const;
  void reset() { let_go(); }
  // The same file once more, under that number or a higher one.
  OwnFd numbered(int least) const;

 private:
  void let_go() {
    if (fd_ && !is_there()) static_cast<void>(fd_.release());
    fd_.reset();
  }

  Fd fd_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

// As open(), with O_CLOEXEC.
OwnFd own_open(const char* path, int flags, mode_t mode = 0);

}  // namespace molt
