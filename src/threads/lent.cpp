#include "threads/lent.hpp"

#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/futex.hpp"
#include "threads/census.hpp"

namespace molt::threads {
namespace {

constexpr int backlog = 4;
constexpr int most_senders = 64;      // at one question
constexpr int most_messages = 1'024;  // of one sender

bool is_root(const Fd& sender) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return getsockopt(sender.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == 0;
}

}  // namespace

Status LoanDesk::open() {
  if (listener_) return {};
  std::uint64_t random = 0;
  if (getrandom(&random, sizeof random, GRND_NONBLOCK) != sizeof random) {
    random = static_cast<std::uint64_t>(now_ns());
  }
  char name[64];
  const int length = std::snprintf(name, sizeof name, "molt-loans/%d/%016llx", getpid(),
                                   static_cast<unsigned long long>(random));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name, static_cast<std::size_t>(length));
  Fd listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener) return fail_errno(errno, "cannot make a socket");
  const auto bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 +
                                            static_cast<std::size_t>(length));
  if (bind(listener.get(), reinterpret_cast<sockaddr*>(&address), bytes) != 0 ||
      listen(listener.get(), backlog) != 0) {
    return fail_errno(errno, "cannot listen on @%s", name);
  }
  listener_ = std::move(listener);
  name_ = name;
  return {};
}

void LoanDesk::close() {
  listener_.reset();
  name_.clear();
}

std::size_t LoanDesk::take(Census& census) {
  std::size_t taken = 0;
  for (int i = 0; i < most_senders && listener_; ++i) {
    const Fd sender(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!sender && errno != EINTR && errno != ECONNABORTED) break;
    if (sender && is_root(sender)) taken += take_from(census, sender);  // L3
  }
  return taken;
}

std::size_t LoanDesk::take_from(Census& census, const Fd& sender) {
  std::size_t taken = 0;
  for (int i = 0; i < most_messages; ++i) {
    std::int32_t tids[most_loans];
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * most_loans)];
    iovec part{tids, sizeof tids};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    const ssize_t n = recvmsg(sender.get(), &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    const std::size_t told = static_cast<std::size_t>(n) / sizeof tids[0];
    std::size_t next = 0;
    for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
      const std::size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (std::size_t k = 0; k < count; ++k, ++next) {
        int number = -1;
        std::memcpy(&number, CMSG_DATA(c) + k * sizeof number, sizeof number);
        Fd file(number);
        if (next < told) taken += census.lend(tids[next], std::move(file));
      }
    }
  }
  return taken;
}

bool Census::lend(int tid, Fd file) {
  Thread* const thread = find(tid);
  if (thread == nullptr || thread->schedstat || thread->open_error == 0) return false;
  if (!is_file_of(*thread, file) || !has_room()) return false;
  if (!open(*thread, std::move(file))) return false;
  thread->open_error = 0;
  open_descriptors_ += 2;
  return true;
}

Status Census::take_loans(Loans& loans) {
  loans.taken = desk_.take(*this);
  // Who was born since is missing too, and what was not taken does not stay open.
  if (Status ok = refresh(); !ok) return ok;
  for (const Thread* thread : list_) {
    if (thread->open_error == EACCES || thread->open_error == EPERM) {
      loans.missing.push_back(thread->tid);
    }
  }
  if (loans.missing.empty()) {
    desk_.close();
    return {};
  }
  if (Status ok = desk_.open(); !ok) return ok;
  loans.desk = desk_.name();
  return {};
}

Result<Loans> take_loans() {
  Loans loans;
  Status taken;
  Status ran = inspect([&](Census& census) { taken = census.take_loans(loans); });
  if (!ran) return pass(ran);
  if (!taken) return pass(taken);
  return loans;
}

}  // namespace molt::threads
