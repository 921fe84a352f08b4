// helper.hpp - calls of functions in the target, on a thread of our own there.
#pragma once

#include "attach/borrow.hpp"

#include <chrono>
#include <initializer_list>
#include <string_view>

namespace molt::attach {

using Clock = std::chrono::steady_clock;

// The functions of the target's C library that are needed. Wherever they are: before glibc 2.34 they
// were in three libraries.
struct Functions {
  std::uint64_t pthread_create = 0;
  std::uint64_t pthread_self = 0;
  std::uint64_t pthread_detach = 0;
  std::uint64_t errno_location = 0;
  std::uint64_t munmap = 0;
  std::uint64_t dlopen = 0;
  std::uint64_t dlsym = 0;
  std::uint64_t dlerror = 0;
  std::uint64_t memfd_create = 0;
  std::uint64_t close = 0;
  std::uint64_t syscall = 0;
};

// Roles      The tools' thread asks, the helper thread in the target does it (stub.hpp).
// State      Two pages of the target's, at an address that this program chose.
// Progress   The helper looks every 100 us, more rarely the longer nothing is asked, so a call takes that
//            long and what it does.
// Death      Of this program: the helper ends by itself 30 s after the last command and leaves its pages,
//            so that a command that comes late hits nothing else. Of the target: calls fail.
class Helper {
 public:
  // Borrows a thread until one has created the helper; EAGAIN if none could be borrowed in time.
  [[nodiscard]] static Result<Helper> start(Target& target, const Functions& functions,
                                            std::uint64_t code, Clock::time_point deadline);
  Helper(Helper&& other) noexcept
      : target_(other.target_),
        pages_(std::exchange(other.pages_, 0)),
        command_(other.command_),
        text_used_(other.text_used_),
        loan_(other.loan_),
        borrowed_(other.borrowed_),
        last_(other.last_) {}
  Helper& operator=(Helper&&) = delete;
  // Ends the thread, and waits until its pages are gone.
  ~Helper();

  // Gives up after the deadline, but not before 10 s.
  [[nodiscard]] Result<std::uint64_t> call(std::uint64_t function,
                                           std::initializer_list<std::uint64_t> arguments,
                                           Clock::time_point deadline);
  // Puts bytes where functions can find them, until the helper ends. 0: no room.
  std::uint64_t put(std::span<const std::byte> bytes);
  std::uint64_t put(std::string_view text);  // with a NUL

  const Loan& loan() const { return loan_; }
  int borrowed() const { return borrowed_; }

 private:
  explicit Helper(const Target& target) : target_(&target) {}
  Shared read() const;

  const Target* target_;
  std::uint64_t pages_ = 0;
  std::uint32_t command_ = 0;
  std::size_t text_used_ = sizeof(Shared);
  Loan loan_;
  int borrowed_ = 0;
  Clock::time_point last_;
};

}  // namespace molt::attach
