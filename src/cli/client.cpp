#include "cli/client.hpp"

#include "attach/freezer.hpp"
#include "cli/network.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <system_error>
#include <thread>

namespace molt::cli {
namespace {

// Deeper than any reply: what nests deeper would overflow the stack of those who walk it.
constexpr int nesting_max = 32;

std::string errno_text(int code) { return std::generic_category().message(code); }

Json parse_reply(const std::string& text) {
  bool is_too_deep = false;
  const auto watch_depth = [&](int depth, Json::parse_event_t, Json&) {
    is_too_deep |= depth > nesting_max;
    return !is_too_deep;
  };
  Json reply = Json::parse(text, watch_depth);
  return is_too_deep ? Json() : reply;
}

[[noreturn]] void fail_not_ours(const Process& process, int code) {
  if (process.uid == ::geteuid()) {
    fail(
        ErrorClass::permission, code,
        "{} may not be looked at, although it is yours: it gained or gave up privileges, asked not "
        "to be (PR_SET_DUMPABLE), or is in another container; run molt as root, outside of any",
        describe(process));
  }
  fail(ErrorClass::permission, code,
       "{} belongs to {}, and may not be looked at from here; run molt as that user or as root, "
       "outside of any container",
       describe(process), user_name(process.uid));
}

void refuse_frozen(const Process& process) {
  if (const auto frozen = attach::find_freezer(process.pid)) {
    fail(ErrorClass::stalled, EBUSY, "{} is frozen; let it go on: {}", describe(process),
         frozen->remedy());
  }
}

ControlSocket find_socket(const Process& process) {
  SocketFinder finder;
  ControlSocket socket = finder.find(process);
  switch (socket.state) {
    case ControlSocket::found:
      return socket;
    case ControlSocket::absent:
      if (has_own_threads(process)) {
        fail(ErrorClass::missing, ENXIO,
             "{} has Molt, but somebody has removed its control socket, or its root is another one "
             "since; `molt attach -p {}` makes the socket anew",
             describe(process), process.pid);
      }
      fail(ErrorClass::missing, ENXIO,
           "{} has no control socket: it does not use Molt, or did not call molt_start(); "
           "`molt ps` lists those that did",
           describe(process));
    case ControlSocket::denied:
    case ControlSocket::unknown:
      break;
  }
  fail_not_ours(process, EACCES);
}

// In a user namespace that somebody else made (a container without root) root of this one is nobody: root
// connects there as the process's own user. This thread only, hence not by the C library's function.
class UserOf {
 public:
  explicit UserOf(const Process& process) {
    struct stat there {
    }, here{};
    const std::string theirs = fmt::format("/proc/{}/ns/user", process.pid);
    is_other_ = ::geteuid() == 0 && process.uid != 0 && ::stat(theirs.c_str(), &there) == 0 &&
                ::stat("/proc/self/ns/user", &here) == 0 &&
                (there.st_ino != here.st_ino || there.st_dev != here.st_dev) && become(process.uid);
  }
  ~UserOf() {
    if (is_other_) become(0);
  }
  UserOf(const UserOf&) = delete;
  UserOf& operator=(const UserOf&) = delete;

 private:
  static bool become(uid_t effective) { return ::syscall(SYS_setresuid, -1, effective, -1) == 0; }
  bool is_other_ = false;
};

}  // namespace

std::string describe(const Process& process) {
  return fmt::format("process {} ({})", process.pid, process.comm);
}

Failure bad_reply(const Process& process) {
  return make_failure(
      ErrorClass::failed, EPROTO,
      fmt::format("{} sent what is no reply; compare its version in `molt ps` with `molt version`",
                  describe(process)));
}

int Deadline::remaining_ms() const {
  if (never_) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(at_ - Clock::now());
  return static_cast<int>(std::clamp<std::int64_t>(left.count(), 0, INT_MAX));
}

std::string Deadline::text() const {
  return fmt::format("{:g} s", std::chrono::duration<double>(wait_).count());
}

Connection::Connection(const Process& process, Deadline deadline) : process_(process) {
  refuse_frozen(process_);
  connect(find_socket(process), deadline);
}

void Connection::connect(const ControlSocket& to, Deadline deadline) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (to.node) {
    // By way of the open node: a path below /proc/PID/root can be longer than sun_path.
    fmt::format_to_n(address.sun_path, sizeof address.sun_path - 1, "/proc/self/fd/{}",
                     to.node.get());
    if (connect_to(address, sizeof address, deadline)) return;
    ucred peer{};
    socklen_t size = sizeof peer;
    ::getsockopt(socket_.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size);
    fail(ErrorClass::missing, ENXIO,
         "{} has no control socket of its own: the one under its name is that of process {}",
         describe(process_), peer.pid);
  }
  const NetworkOf theirs(process_);
  for (bool is_full = true; is_full;) {
    is_full = false;
    for (const std::string& name : to.names) {
      const std::size_t length = std::min(name.size(), sizeof address.sun_path - 1);
      std::memcpy(address.sun_path + 1, name.data(), length);
      const auto bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
      if (connect_to(address, bytes, deadline)) return;
      is_full |= errno == EAGAIN;
    }
    // Another's queue may be full for ever; the one that is looked for, while its process is stopped.
    if (is_full && deadline.remaining_ms() == 0) fail_no_answer(deadline);
    if (is_full) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  fail(ErrorClass::missing, ENXIO,
       "{} has no control socket: those with its number belong to other processes, or are in a "
       "network namespace that only root may enter",
       describe(process_));
}

// False: it is another process that listens there, or, errno EAGAIN, whoever does takes nobody now: to an
// abstract name one connects without waiting.
bool Connection::connect_to(const sockaddr_un& address, socklen_t bytes, Deadline deadline) {
  const bool is_abstract = address.sun_path[0] == '\0';
  socket_ =
      Fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | (is_abstract ? SOCK_NONBLOCK : 0), 0));
  if (!socket_) fail(ErrorClass::failed, errno, "cannot make a socket: {}", errno_text(errno));

  // Connecting waits for room in the listener's queue, which a stopped process never makes.
  if (const int wait = deadline.remaining_ms(); wait >= 0) {
    const timeval limit{wait / 1000, std::max(wait % 1000, 1) * 1000};
    ::setsockopt(socket_.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  }

  int code = 0;
  {
    const UserOf theirs(process_);
    if (::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), bytes) != 0) {
      code = errno;
    }
  }
  if (code != 0) {
    if (is_abstract && (code == ECONNREFUSED || code == EAGAIN)) {
      errno = code;
      return false;
    }
    if (code == EAGAIN) fail_no_answer(deadline);
    if (code == EACCES || code == EPERM) {
      fail_not_ours(process_, code);
    }
    if (code == ECONNREFUSED || code == ENOENT) {
      fail(ErrorClass::missing, code,
           "{} does not listen any more: it has executed another program, or what is there is from "
           "an "
           "earlier process of its number; `molt attach -p {}` puts Molt in",
           describe(process_), process_.pid);
    }
    fail(class_of_errno(code), code, "cannot connect to {}: {}", describe(process_),
         errno_text(code));
  }

  if (is_abstract) ::fcntl(socket_.get(), F_SETFL, 0);
  ucred peer{};
  socklen_t size = sizeof peer;
  const bool is_ours = ::getsockopt(socket_.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
                       peer.pid == process_.pid;
  errno = 0;
  return is_ours;
}

Json Connection::call(std::string_view method, const Json& parameters, int fd, Deadline deadline) {
  // A path need not be valid UTF-8.
  const std::string message = Json{{"method", method}, {"parameters", parameters}}.dump(
      -1, ' ', false, Json::error_handler_t::replace);
  if (message.size() > wire::request_bytes_max) {
    fail(ErrorClass::usage, E2BIG, "the request has {} bytes, and {} are allowed; say less",
         message.size(), wire::request_bytes_max);
  }
  is_awaiting_ = true;
  send(message, fd, deadline);
  return receive(deadline);
}

void Connection::stream(std::string_view method, const Json& parameters,
                        const std::function<void(const Json&)>& take) {
  take(call(method, parameters, -1, Deadline::never()));
  for (;;) take(receive(Deadline::never()));
}

void Connection::send(const std::string& message, int fd, Deadline deadline) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
  const std::size_t bytes = message.size() + 1;  // the NUL ends it
  std::size_t sent = 0;
  while (sent < bytes) {
    iovec part{const_cast<char*>(message.c_str()) + sent, bytes - sent};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    if (fd >= 0 && sent == 0) {
      header.msg_control = control;
      header.msg_controllen = sizeof control;
      cmsghdr* rights = CMSG_FIRSTHDR(&header);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(sizeof fd);
      std::memcpy(CMSG_DATA(rights), &fd, sizeof fd);
    }
    const ssize_t n = ::sendmsg(socket_.get(), &header, MSG_NOSIGNAL);
    if (n >= 0) {
      sent += static_cast<std::size_t>(n);
    } else if (errno == EAGAIN) {
      fail_no_answer(deadline);
    } else if (errno == EPIPE || errno == ECONNRESET) {
      return;  // it may have said why before it closed: receive() finds out
    } else if (errno != EINTR) {
      fail(ErrorClass::failed, errno, "cannot send to {}: {}", describe(process_),
           errno_text(errno));
    }
  }
}

Json Connection::receive(Deadline deadline) {
  const std::string text = receive_message(deadline);
  is_awaiting_ = false;
  try {
    Json reply = parse_reply(text);
    Json& parameters = reply.at("parameters");
    if (reply.contains("error")) throw failure_of_reply(parameters);
    if (parameters.is_object()) return std::move(parameters);
  } catch (const Json::exception&) {
  }
  throw bad_reply(process_);
}

std::string Connection::receive_message(Deadline deadline) {
  std::size_t searched = 0;
  for (;;) {
    if (const std::size_t end = received_.find(wire::terminator, searched);
        end != std::string::npos) {
      std::string message = received_.substr(0, end);
      received_.erase(0, end + 1);
      return message;
    }
    searched = received_.size();
    if (searched > wire::reply_bytes_max) {
      fail(ErrorClass::failed, EMSGSIZE,
           "{} sent more than {} bytes without an end; compare its version in `molt ps` with "
           "`molt version`",
           describe(process_), wire::reply_bytes_max);
    }

    pollfd ready{socket_.get(), POLLIN, 0};
    const int n = ::poll(&ready, 1, deadline.remaining_ms());
    if (n < 0 && errno == EINTR) continue;
    if (n == 0) fail_no_answer(deadline);
    char piece[65536];
    const ssize_t bytes = ::recv(socket_.get(), piece, sizeof piece, MSG_DONTWAIT);
    if (bytes > 0) {
      received_.append(piece, static_cast<std::size_t>(bytes));
    } else if (bytes == 0 || errno == ECONNRESET) {
      fail_closed();
    } else if (errno != EINTR && errno != EAGAIN) {
      fail(ErrorClass::failed, errno, "cannot receive from {}: {}", describe(process_),
           errno_text(errno));
    }
  }
}

void Connection::fail_no_answer(Deadline deadline) const {
  const std::optional<Process> now = find_process(process_.pid);
  if (now && (now->state == 'T' || now->state == 't')) {
    fail(ErrorClass::stalled, ETIMEDOUT, "{} is stopped; continue it with `kill -CONT {}`",
         describe(process_), process_.pid);
  }
  refuse_frozen(process_);
  fail(ErrorClass::stalled, ETIMEDOUT,
       "{} gave no answer in {}; the request is withdrawn; try again with a longer --timeout",
       describe(process_), deadline.text());
}

void Connection::fail_closed() const {
  // A process that ends closes its sockets some moments before it is seen to have ended.
  constexpr int ending_ms = 200;
  const Fd end(static_cast<int>(::syscall(SYS_pidfd_open, process_.pid, 0)));
  pollfd ended{end.get(), POLLIN, 0};
  if (!end || ::poll(&ended, 1, ending_ms) > 0) {
    fail(ErrorClass::failed, ECONNRESET, "{} ended before it answered", describe(process_));
  }
  fail(ErrorClass::failed, ECONNRESET,
       "{} closed the connection without an answer; `molt events -p {}` may say why",
       describe(process_), process_.pid);
}

}  // namespace molt::cli
