#include "client.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>

#include "base/futex.hpp"

namespace test {

bool eventually(const std::function<bool()>& holds) {
  const auto deadline = molt::Deadline::in_ms(patience_ms);
  while (!holds()) {
    if (deadline.passed()) return false;
    // tidy: sleep-ok between two looks at something that tells nobody when it changes
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

Client::Client(const std::string& socket_path) : socket_(::socket(AF_UNIX, SOCK_STREAM, 0)) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::snprintf(address.sun_path, sizeof address.sun_path, "%s", socket_path.c_str());
  if (connect(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    const int code = errno;
    socket_.reset();
    errno = code;
  }
}

bool Client::send_raw(std::string_view bytes, int fd) {
  if (!socket_) return false;
  while (!bytes.empty()) {
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
    iovec part{const_cast<char*>(bytes.data()), bytes.size()};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    if (fd >= 0) {
      header.msg_control = control;
      header.msg_controllen = sizeof control;
      cmsghdr* rights = CMSG_FIRSTHDR(&header);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(sizeof fd);
      std::memcpy(CMSG_DATA(rights), &fd, sizeof fd);
      fd = -1;
    }
    pollfd ready{socket_.get(), POLLOUT, 0};
    if (poll(&ready, 1, patience_ms) <= 0) return false;
    const ssize_t n = sendmsg(socket_.get(), &header, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n < 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  return true;
}

bool Client::send(std::string_view method, const Json& parameters, int fd) {
  Json request = Json::object();
  request["method"] = method;
  request["parameters"] = parameters;
  return send_raw(molt::control::to_text(request) + '\0', fd);
}

Json Client::receive() {
  const auto deadline = molt::Deadline::in_ms(patience_ms);
  for (;;) {
    if (const auto end = received_.find('\0'); end != std::string::npos) {
      Json reply = Json::parse(received_.substr(0, end), nullptr, false);
      received_.erase(0, end + 1);
      return reply;
    }
    pollfd ready{socket_.get(), POLLIN, 0};
    if (deadline.passed() || poll(&ready, 1, patience_ms) <= 0) return nullptr;
    char bytes[65536];
    const ssize_t n = recv(socket_.get(), bytes, sizeof bytes, MSG_DONTWAIT);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n <= 0) return nullptr;
    received_.append(bytes, static_cast<std::size_t>(n));
  }
}

Json Client::ask(std::string_view method, const Json& parameters, int fd) {
  return send(method, parameters, fd) ? receive() : nullptr;
}

bool Client::sees_close() {
  const auto deadline = molt::Deadline::in_ms(patience_ms);
  while (!deadline.passed()) {
    pollfd ready{socket_.get(), POLLIN, 0};
    if (poll(&ready, 1, patience_ms) <= 0) return false;
    char bytes[65536];
    const ssize_t n = recv(socket_.get(), bytes, sizeof bytes, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno == ECONNRESET)) return true;
  }
  return false;
}

Json field(const Json& reply, const char* name) {
  if (!reply.is_object()) return nullptr;
  const auto parameters = reply.find("parameters");
  if (parameters == reply.end() || !parameters->is_object()) return nullptr;
  const auto at = parameters->find(name);
  return at == parameters->end() ? Json(nullptr) : *at;
}

std::string text(const Json& reply, const char* name) {
  const Json value = field(reply, name);
  const auto* text = value.get_ptr<const std::string*>();
  return text ? *text : "(" + molt::control::to_text(value) + ")";
}

int error_code(const Json& reply) {
  if (!reply.is_object()) return -1;
  if (reply.find("error") == reply.end()) return 0;
  const Json code = field(reply, "code");
  const auto* number = code.get_ptr<const std::int64_t*>();
  return number ? static_cast<int>(*number) : -1;
}

std::string error_class(const Json& reply) { return text(reply, "class"); }

}  // namespace test
