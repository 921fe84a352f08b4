// failure.hpp - why a verb could not do what it was asked: the one exception of this program, and
// the counting that turns many of them into an exit code.
#pragma once

#include "abi/wire.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <string>
#include <utility>

namespace molt::cli {

// Keeps the order of fields: what is printed has the order of docs/json.md.
using Json = nlohmann::ordered_json;
using wire::ErrorClass;

enum ExitCode {
  exit_done = 0,
  exit_failed = 1,
  exit_usage = 2,
  exit_missing = 3,
  exit_permission = 4,
  exit_refused = 5,
  exit_stalled = 6,
  exit_partly = 7,
};

// The message is one line: what, why, what to do next.
struct Failure {
  ErrorClass kind = ErrorClass::failed;
  std::string errno_name;
  int code = 0;  // positive errno
  std::string message;

  int exit_code() const { return wire::info(kind).exit_code; }
  Json json() const;
};

Failure make_failure(ErrorClass kind, int code, std::string message);

template <class... Args>
[[noreturn]] void fail(ErrorClass kind, int code, fmt::format_string<Args...> format,
                       Args&&... args) {
  throw make_failure(kind, code, fmt::format(format, std::forward<Args>(args)...));
}

// An errno of a system call on a file or process that the user named.
ErrorClass class_of_errno(int code);

// What a reply says that is no success.
Failure failure_of_reply(const Json& parameters);

// Counts what was done and what failed; a target, module or file is one piece of work.
class Tally {
 public:
  void done() { ++done_; }
  void failed(int exit_code);
  // All done: 0. Some: 7. None: the code they have in common, or 1.
  int exit_code() const;
  void add(const Tally& other);

 private:
  int done_ = 0;
  int failed_ = 0;
  int common_code_ = 0;
};

}  // namespace molt::cli
