// copy.hpp - reading this process's memory that may vanish while it is read.
//
// The kernel copies it: write() from there into a memfd that is mapped here. A page that is gone, or
// may not be read, ends the copy and harms nobody. process_vm_readv() does the same where there is
// no memfd, but takes pages in a way that copies all that are shared with a forked child (measured:
// 512 MiB audited beside a fork made 512 MiB of copies); /proc/self/mem takes the lock of the
// address space for each page, and reads what the program itself may not.
//
// A host that closes all descriptors may close the memfd, and a copy would go to a file of its own and
// leave an earlier one here, in which a pointer may be missing: so it is looked at before and after (own_fd.hpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "base/own_fd.hpp"
#include "base/result.hpp"

namespace molt::audit {

class Copy {
 public:
  static constexpr std::size_t bytes_max = 64 * 1024;

  Copy() = default;
  ~Copy();
  Copy(const Copy&) = delete;
  Copy& operator=(const Copy&) = delete;

  // The buffer is the process's only one: see audit()'s lock.
  [[nodiscard]] Status open();

  // Copies up to bytes_max and returns how many bytes could be read, in whole words.
  std::size_t take(std::uintptr_t from, std::size_t bytes);
  const std::uint64_t* words() const { return words_; }

  // Memory for copies that are kept for a while: on the heap they would show addresses that the search
  // has found where they were copied from.
  static constexpr std::size_t scratch_bytes = 16 * 1024;
  std::uint64_t* scratch() { return words_ + bytes_max / sizeof(std::uint64_t); }

  // One word; nothing if it cannot be read. Not for the time between take() and words().
  std::optional<std::uint64_t> word(std::uintptr_t address);

 private:
  bool share_memory();
  bool unshare_memory();

  OwnFd memory_;
  bool is_shared_ = false;
  bool usable_ = false;  // else process_vm_readv()
  std::uint64_t* words_ = nullptr;
};

}  // namespace molt::audit
