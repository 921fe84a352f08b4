#include "control/parcel.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

// Newer than Debian 12's headers. Without it some kernels complain in the system's log.
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif

namespace molt::control {
namespace {

constexpr std::uint64_t bytes_max = std::uint64_t{1} << 30;

OwnFd new_memfd() {
  Fd fd(memfd_create("molt-file", MFD_CLOEXEC | MFD_NOEXEC_SEAL));
  if (!fd) fd.reset(memfd_create("molt-file", MFD_CLOEXEC));
  return OwnFd(std::move(fd));
}

}  // namespace

Result<Parcel> Parcel::pack(const Fd& file) {
  // Not fstat(): it would wait for a file system that is served by a dead host.
  struct statx info {};
  constexpr unsigned wanted = STATX_TYPE | STATX_SIZE | STATX_INO;
  if (statx(file.get(), "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, wanted, &info) != 0) {
    return fail_errno(errno, "cannot look at the file that came with the request");
  }
  // To open a FIFO or a device could block, or do something.
  if (!S_ISREG(info.stx_mode)) {
    return fail(EINVAL, "what came with the request is not a regular file");
  }
  if (info.stx_size > bytes_max) return fail(EFBIG, "the file is larger than 1 GiB");

  Parcel parcel;
  parcel.packer_tid_ = gettid();
  parcel.fd_ = file.get();
  parcel.device_ = makedev(info.stx_dev_major, info.stx_dev_minor);
  parcel.inode_ = info.stx_ino;
  parcel.bytes_ = static_cast<std::size_t>(info.stx_size);
  if (parcel.bytes_ > 0) {
    void* at = mmap(nullptr, parcel.bytes_, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (at == MAP_FAILED) {
      parcel.map_error_ = errno;
    } else {
      parcel.content_ = at;
    }
  }
  return parcel;
}

Result<OwnFd> Parcel::unpack() const {
  if (OwnFd fd = open_anew()) return fd;
  return copy();
}

OwnFd Parcel::open_anew() const {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/task/%d/fd/%d", packer_tid_, fd_);
  OwnFd fd = own_open(path, O_RDONLY | O_NOCTTY | O_NONBLOCK);
  // The packer may have ended, and another thread have its number.
  struct stat info {};
  if (!fd || fstat(fd.get(), &info) != 0 || info.st_dev != device_ || info.st_ino != inode_) {
    return {};
  }
  return fd;
}

Result<OwnFd> Parcel::copy() const {
  if (map_error_ != 0) {
    return fail_errno(map_error_,
                      "the process may neither open nor map the file; copy it to where "
                      "the process's user may read it");
  }
  OwnFd fd = new_memfd();
  if (!fd) return fail_errno(errno, "cannot make a memfd for the file");
  if (!fd.is_new_memfd()) return fail(EBADF, "cannot copy the file to memory");
  const char* at = static_cast<const char*>(content_);
  for (std::size_t done = 0; done < bytes_;) {
    if (!fd.is_there()) return fail(EBADF, "cannot copy the file to memory");
    const ssize_t n = write(fd.get(), at + done, bytes_ - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return fail_errno(n < 0 ? errno : EIO, "cannot copy the file to memory");
    done += static_cast<std::size_t>(n);
  }
  return fd;
}

Parcel::Parcel(Parcel&& other) noexcept { *this = std::move(other); }

Parcel& Parcel::operator=(Parcel&& other) noexcept {
  std::swap(packer_tid_, other.packer_tid_);
  std::swap(fd_, other.fd_);
  std::swap(device_, other.device_);
  std::swap(inode_, other.inode_);
  std::swap(bytes_, other.bytes_);
  std::swap(content_, other.content_);
  std::swap(map_error_, other.map_error_);
  return *this;
}

Parcel::~Parcel() {
  if (content_ != nullptr) munmap(content_, bytes_);
}

}  // namespace molt::control
