// result.hpp - how a function of the runtime or the tools says that it failed, and why.
//
//     [[nodiscard]] Result<Fd> open_store(const char* path) {
//       int fd = ::open(path, O_PATH | O_CLOEXEC);
//       if (fd < 0) return fail_errno(errno, "cannot open the store %s", path);
//       return Fd(fd);
//     }
//     ...
//     auto store = open_store(path);
//     if (!store) return pass(store);
//     use(*store);
//
// Read the value with operator* or ->, after the test: value() would end the host by
// std::terminate where there is no value. An alias cannot be [[nodiscard]], so every function that
// returns a Result or Status says it itself.
//
// Everything here may be called from any thread, takes no locks and allocates nothing.
#pragma once

#include <tl/expected.hpp>

#include <type_traits>

namespace molt {

// Why something failed. Trivially copyable and without pointers to anything that could go away: an
// error may be kept in an object, sent to another thread, or outlive the module that caused it.
struct Error {
  int code = 0;           // a positive errno
  const char* site = "";  // static text: the step that failed, by default a function's name
  char detail[240] = {};  // one line: what, why, what to do; cut off where it does not fit
};
static_assert(std::is_trivially_copyable_v<Error> && sizeof(Error) == 256);

template <class T>
using Result = tl::expected<T, Error>;
using Status = Result<void>;

// An errno with the name of the function in which it was written down.
struct ErrorCode {
  // Not explicit: fail(EINVAL, "...") is to note the caller's name without being told.
  ErrorCode(int code_, const char* site_ = __builtin_FUNCTION()) : code(code_), site(site_) {}
  int code;
  const char* site;
};

// What a function returns that failed; the format is printf's.
[[nodiscard]] tl::unexpected<Error> fail(ErrorCode code, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

// The same; the meaning of the code is added: "<text>: No such file or directory".
[[nodiscard]] tl::unexpected<Error> fail_errno(ErrorCode code, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

// Hands on the error of a failed result to a caller that wants another type.
template <class T>
[[nodiscard]] tl::unexpected<Error> pass(const Result<T>& failed) {
  return tl::unexpected<Error>(failed.error());
}

// "EEXIST" for EEXIST; "E?" for what is no errno. Static text.
[[nodiscard]] const char* errno_name(int code);

}  // namespace molt
