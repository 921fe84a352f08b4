#include "control/connection.hpp"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "abi/wire.hpp"

namespace molt::control {

void Inbox::append(const char* bytes, std::size_t count, Fd file) {
  bytes_.append(bytes, count);
  if (!file || file_ || bytes_.empty()) return;
  file_ = std::move(file);
  file_at_ = bytes_.size() - 1;
}

bool Inbox::is_ready() const {
  return bytes_.size() > wire::request_bytes_max ||
         bytes_.find(wire::terminator, searched_) != std::string::npos;
}

Inbox::Next Inbox::take(Message& message) {
  const std::size_t end = bytes_.find(wire::terminator, searched_);
  if (end == std::string::npos ? bytes_.size() > wire::request_bytes_max
                               : end > wire::request_bytes_max) {
    return Next::too_long;
  }
  if (end == std::string::npos) {
    searched_ = bytes_.size();
    return Next::none;
  }
  message.text = bytes_.substr(0, end);
  message.file.reset();
  if (file_ && file_at_ <= end) message.file = std::move(file_);
  file_at_ -= std::min(file_at_, end + 1);
  bytes_.erase(0, end + 1);
  searched_ = 0;
  return Next::message;
}

Connection::Connection(std::uint64_t id, Fd socket, log::Requester peer)
    : id_(id), socket_(std::move(socket)), peer_(std::move(peer)), active_ns_(now_ns()) {}

bool Connection::receive() {
  char bytes[16'384];
  // Room for one descriptor: the kernel closes what does not fit.
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  iovec part{bytes, sizeof bytes};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = CMSG_LEN(sizeof(int));

  const ssize_t n = recvmsg(socket_.get(), &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (n < 0) {
    if (errno != EAGAIN && errno != EINTR) is_broken_ = true;
    return false;
  }
  Fd file;
  for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(c), sizeof fd);
    file.reset(fd);
  }
  if (n == 0) {
    has_ended_ = true;
    return false;
  }
  active_ns_ = now_ns();
  if (inbox_.is_empty()) partial_ns_ = active_ns_;
  inbox_.append(bytes, static_cast<std::size_t>(n), std::move(file));
  return true;
}

void Connection::flush() {
  while (has_unsent()) {
    const ssize_t n = ::send(socket_.get(), unsent_.data() + sent_, unsent_.size() - sent_,
                             MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
      is_broken_ = true;
      return;
    }
    sent_ += static_cast<std::size_t>(n);
    active_ns_ = now_ns();
  }
  // A long reply's memory is not kept for the next one.
  std::string().swap(unsent_);
  sent_ = 0;
}

void Connection::send(std::string_view reply) {
  unsent_.append(reply).push_back(wire::terminator);
  active_ns_ = now_ns();
  // What waits behind this request begins to count now.
  if (!inbox_.is_empty()) partial_ns_ = active_ns_;
  flush();
}

bool Connection::is_over() const {
  if (is_broken_) return true;
  if (job || has_unsent()) return false;
  if (is_finishing_) return true;
  return has_ended_ && !is_streaming && !inbox_.is_ready();
}

bool Connection::has_request() const {
  return !is_broken_ && !is_finishing_ && !job && !is_streaming && !has_unsent() &&
         inbox_.is_ready();
}

bool Connection::wants_input() const {
  return !is_finishing_ && !has_ended_ && !job && !is_streaming && !has_unsent() &&
         !inbox_.is_ready();
}

bool Connection::is_idle() const {
  return !job && !is_streaming && !has_unsent() && !inbox_.is_ready();
}

Deadline Connection::patience(int partial_ms, int unread_ms) const {
  const auto after = [](std::int64_t ns, int ms) { return Deadline{ns + ms * 1'000'000LL}; };
  if (has_unsent()) return after(active_ns_, unread_ms);
  if (wants_input() && !inbox_.is_empty()) return after(partial_ns_, partial_ms);
  return {};
}

}  // namespace molt::control
