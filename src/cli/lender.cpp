#include "cli/lender.hpp"

#include "cli/network.hpp"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

namespace molt::cli {
namespace {

constexpr std::size_t most_in_message = 64;  // threads/lent.hpp
constexpr std::size_t most_rounds = 64;
constexpr std::size_t most_at_once = 4096;  // what one socket holds

// The root of a /proc, or nothing.
Fd proc_root(const std::string& path) {
  constexpr long proc_magic = 0x9fa0;
  constexpr ino_t root_inode = 1;
  Fd fd(::open(path.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct statfs system {};
  struct stat info {};
  if (!fd || ::fstatfs(fd.get(), &system) != 0 || system.f_type != proc_magic ||
      ::fstat(fd.get(), &info) != 0 || info.st_ino != root_inode) {
    return {};
  }
  return fd;
}

Fd syscall_of(const Fd& proc, int pid, int tid) {
  open_how how{};
  how.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  const std::string path = fmt::format("{}/task/{}/syscall", pid, tid);
  return Fd(static_cast<int>(::syscall(SYS_openat2, proc.get(), path.c_str(), &how, sizeof how)));
}

Fd connect_to(const Process& process, const std::string& name) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::size_t length = std::min(name.size(), sizeof address.sun_path - 1);
  std::memcpy(address.sun_path + 1, name.data(), length);
  const NetworkOf theirs(process);
  Fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const auto bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
  if (!socket || ::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), bytes) != 0) {
    return {};
  }
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 ||
      peer.pid != process.pid) {
    return {};
  }
  return socket;
}

bool send(const Fd& socket, const std::vector<std::int32_t>& tids, const std::vector<Fd>& files) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * most_in_message)] = {};
  iovec part{const_cast<std::int32_t*>(tids.data()), tids.size() * sizeof tids[0]};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = CMSG_SPACE(sizeof(int) * files.size());
  cmsghdr* rights = CMSG_FIRSTHDR(&header);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(sizeof(int) * files.size());
  for (std::size_t i = 0; i < files.size(); ++i) {
    const int number = files[i].get();
    std::memcpy(CMSG_DATA(rights) + i * sizeof number, &number, sizeof number);
  }
  return ::sendmsg(socket.get(), &header, MSG_NOSIGNAL) >= 0;
}

// What was asked for and could be opened is on its way, as far as the socket takes it.
void send_all(const Process& process, const Json& reply) {
  const Fd socket = connect_to(process, reply.at("desk").get<std::string>());
  if (!socket) return;
  // The process's own /proc may be another than ours, with other numbers.
  const Fd own = proc_root("/proc");
  const Fd theirs = proc_root(fmt::format("/proc/{}/root/proc", process.pid));
  std::vector<std::int32_t> tids;
  std::vector<Fd> files;
  std::size_t left = most_at_once;
  for (const Json& missing : reply.at("missing")) {
    if (left-- == 0) break;
    const int tid = missing.get<int>();
    Fd file = theirs ? syscall_of(theirs, process.inner_pid, tid) : Fd();
    if (!file && process.inner_pid == process.pid) file = syscall_of(own, process.pid, tid);
    if (!file) continue;  // it has ended
    tids.push_back(tid);
    files.push_back(std::move(file));
    if (files.size() < most_in_message) continue;
    if (!send(socket, tids, files)) return;
    tids.clear();
    files.clear();
  }
  if (!files.empty()) static_cast<void>(send(socket, tids, files));
}

}  // namespace

bool needs_loans(const Process& process) {
  struct stat info {};
  return ::geteuid() == 0 && process.uid != 0 &&
         ::stat(fmt::format("/proc/{0}/task/{0}/syscall", process.pid).c_str(), &info) == 0 &&
         info.st_uid != process.uid;
}

void lend(const Process& process, const std::function<Json()>& ask) {
  try {
    Json reply = ask();
    for (std::size_t i = 0; i < most_rounds && reply.at("desk").is_string(); ++i) {
      send_all(process, reply);
      reply = ask();
      if (reply.at("taken") == 0) return;
    }
  } catch (const Failure&) {  // older than this program, or it has ended
  } catch (const Json::exception&) {
  }
}

}  // namespace molt::cli
