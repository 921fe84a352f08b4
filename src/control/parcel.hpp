// parcel.hpp - a client's file on its way from the `molt` thread to a worker.
//
// The file arrives on the `molt` thread, in a descriptor table that is that thread's alone; the
// operation runs on a worker, in the host's table. A descriptor cannot be handed from one to the
// other: pidfd_getfd() finds the table of a process's first thread only (before Linux 6.9), and any
// socket between the two would have to be in both tables. So the worker opens the file anew, through
// /proc/self/task/TID/fd/N, which is allowed between threads of one process whatever they are. That
// gives the same inode, by which module::load() sees that others load the same file.
//
// Opening anew asks the file system for permission again, which the client had and the host may not
// have (root loads a file of its own into a user's process), and needs /proc. So the `molt` thread
// also maps the file. The address space is one: where the worker cannot open the file, it copies the
// mapping to a memfd. It does so with write(), which answers EFAULT where touching a file that was
// truncated meanwhile would raise SIGBUS. A copy is another inode: what is lost is only that this
// request is merged with others for the same file before it is read.
//
// The `molt` thread never reads from the file, whose file system may hang.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/fd.hpp"
#include "base/own_fd.hpp"
#include "base/result.hpp"

namespace molt::control {

class Parcel {
 public:
  Parcel() = default;
  // On the `molt` thread, which keeps `file` open until the parcel is unpacked. EINVAL: no regular
  // file; EFBIG.
  [[nodiscard]] static Result<Parcel> pack(const Fd& file);

  // On another thread: a descriptor in its own table. EBADF: the host has closed it meanwhile.
  [[nodiscard]] Result<OwnFd> unpack() const;

  Parcel(Parcel&& other) noexcept;
  Parcel& operator=(Parcel&& other) noexcept;
  ~Parcel();

 private:
  [[nodiscard]] OwnFd open_anew() const;
  [[nodiscard]] Result<OwnFd> copy() const;

  int packer_tid_ = 0;
  int fd_ = -1;  // in the packer's table, and the packer's to close
  std::uint64_t device_ = 0;
  std::uint64_t inode_ = 0;
  std::size_t bytes_ = 0;
  void* content_ = nullptr;  // null: empty, or could not be mapped
  int map_error_ = 0;
};

}  // namespace molt::control
