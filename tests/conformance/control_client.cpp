#include "control_client.hpp"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

using nlohmann::json;

ControlClient::ControlClient(const std::string& socket_path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (socket_path.size() >= sizeof address.sun_path) {
    error_ = ENAMETOOLONG;
    return;
  }
  std::memcpy(address.sun_path, socket_path.c_str(), socket_path.size() + 1);
  socket_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (socket_ < 0 ||
      connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    error_ = errno;
  }
}

ControlClient::~ControlClient() {
  if (socket_ >= 0) close(socket_);
}

static json broken() {
  return {{"error", "molt.Error"}, {"parameters", {{"code", EPIPE}, {"message", "no reply"}}}};
}

json ControlClient::call(const std::string& method, const json& parameters, int fd) {
  std::string request = json{{"method", method}, {"parameters", parameters}}.dump();
  request.push_back('\0');

  iovec data = {request.data(), request.size()};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char space[CMSG_SPACE(sizeof fd)] = {};
  if (fd >= 0) {
    message.msg_control = space;
    message.msg_controllen = sizeof space;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  while (data.iov_len > 0) {
    ssize_t sent = sendmsg(socket_, &message, MSG_NOSIGNAL);
    if (sent < 0) {
      // The peer may have answered before it hung up.
      if (errno == EINTR) continue;
      break;
    }
    data.iov_base = static_cast<char*>(data.iov_base) + sent;
    data.iov_len -= static_cast<std::size_t>(sent);
    message.msg_control = nullptr;
    message.msg_controllen = 0;
  }

  std::string reply;
  for (char piece[4096];;) {
    ssize_t got = recv(socket_, piece, sizeof piece, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return broken();
    reply.append(piece, static_cast<std::size_t>(got));
    if (reply.back() == '\0') break;
  }
  reply.pop_back();
  return json::parse(reply);
}

int error_of(const json& reply) {
  if (!reply.contains("error")) return 0;
  return reply.at("parameters").value("code", EIO);
}
