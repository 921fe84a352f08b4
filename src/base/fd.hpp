// fd.hpp - a file descriptor that is closed when its owner goes.
#pragma once

#include <unistd.h>

#include <utility>

namespace molt {

// Owns at most one descriptor; movable, not copyable. Not for descriptors whose close() can report
// a delayed write error that matters: release() those and close them by hand.
class Fd {
 public:
  Fd() = default;
  // Takes over what a system call returned: a negative number owns nothing.
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(other.release()) {}
  Fd& operator=(Fd&& other) noexcept {
    reset(other.release());
    return *this;
  }
  ~Fd() { reset(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

  // Gives the descriptor to the caller, who has to close it.
  [[nodiscard]] int release() { return std::exchange(fd_, -1); }

  // Closes the one owned now and takes another. close() is not repeated after EINTR: Linux has
  // freed the number by then, and another thread may have it.
  void reset(int fd = -1) {
    int old = std::exchange(fd_, fd);
    if (old >= 0) ::close(old);
  }

 private:
  int fd_ = -1;
};

}  // namespace molt
