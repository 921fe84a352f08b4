// client.hpp - one connection to one process: requests out, replies in, never past a deadline.
//
// The process at the other end is not trusted to be well: it may be stopped, die at any byte, or
// send garbage. Whatever it does becomes a Failure.
#pragma once

#include "base/fd.hpp"
#include "cli/failure.hpp"
#include "cli/process.hpp"

#include <sys/un.h>

#include <chrono>
#include <functional>
#include <string>
#include <string_view>

namespace molt::cli {

// "process 4711 (server)", with which all messages about it begin.
std::string describe(const Process& process);
// What a process sent is no reply, or lacks what it should have.
Failure bad_reply(const Process& process);

class Deadline {
 public:
  using Clock = std::chrono::steady_clock;

  static Deadline never() { return {}; }
  static Deadline after(std::chrono::milliseconds wait) { return Deadline(wait); }

  bool is_never() const { return never_; }
  // For poll(): -1 for never, 0 when it has passed.
  int remaining_ms() const;
  // "2.5 s", as it was given.
  std::string text() const;

 private:
  Deadline() = default;
  explicit Deadline(std::chrono::milliseconds wait)
      : never_(false), wait_(wait), at_(Clock::now() + wait) {}

  bool never_ = true;
  std::chrono::milliseconds wait_{};
  Clock::time_point at_;
};

class Connection {
 public:
  // Finds the socket of `process` and connects to it.
  Connection(const Process& process, Deadline deadline);

  // The parameters of the reply. `fd` goes with the request unless it is -1.
  Json call(std::string_view method, const Json& parameters, int fd, Deadline deadline);
  // Gives one reply after another to `take`, until the process ends or closes.
  void stream(std::string_view method, const Json& parameters,
              const std::function<void(const Json&)>& take);
  // A request was sent, and its reply did not come.
  bool is_awaiting() const { return is_awaiting_; }

 private:
  void connect(const ControlSocket& to, Deadline deadline);
  bool connect_to(const sockaddr_un& address, socklen_t bytes, Deadline deadline);
  void send(const std::string& message, int fd, Deadline deadline);
  Json receive(Deadline deadline);
  std::string receive_message(Deadline deadline);
  [[noreturn]] void fail_no_answer(Deadline deadline) const;
  [[noreturn]] void fail_closed() const;

  Process process_;
  Fd socket_;
  bool is_awaiting_ = false;
  std::string received_;  // what came after the last message
};

}  // namespace molt::cli
