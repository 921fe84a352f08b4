#include "control/server.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <tuple>

#include "base/directory.hpp"
#include "base/futex.hpp"
#include "control/errors.hpp"
#include "control/parcel.hpp"
#include "control/thread.hpp"

namespace molt::control {

struct Job {
  Job(std::uint64_t connection_, const Call& call_, log::Requester requester_,
      std::shared_ptr<Session> session_)
      : connection(connection_),
        call(call_),
        requester(std::move(requester_)),
        session(std::move(session_)) {}

  const std::uint64_t connection;
  const Call call;
  const log::Requester requester;
  const std::shared_ptr<Session> session;
  Parcel parcel;
  bool has_file = false;
  std::atomic<bool> is_cancelled{false};  // the client went, or the server stops
  std::string reply;                      // written by the worker
};

namespace {

// Room for one JSON document and its reply, whose long parts are on the heap.
constexpr std::size_t molt_stack = 256 * 1024;
constexpr std::size_t bell_stack = 64 * 1024;

constexpr std::uint64_t listener_id = 0;
constexpr std::uint64_t bell_id = 1;
constexpr int backlog = 64;
constexpr int accept_pause_ms = 1'000;
// In one reply to who follows the log.
constexpr std::size_t events_at_once = 256;

// Never reset, and outside of any server: whoever rings need not know whether one is left.
std::atomic<std::uint32_t> bell{0};
std::atomic<int> streams{0};

// A line was logged. Whoever begins to follow counts itself before it reads the log, under the log's
// lock: a line that it does not find there is written later, and its writer sees the count.
void on_line() {
  if (streams.load(std::memory_order_relaxed) > 0) ring();
}

// An empty table of our own (S1). The host's descriptors are not even open here for a moment, where
// the system has close_range(); with the older way they are, but are closed before anything else.
Status leave_descriptor_table() {
  if (syscall(SYS_close_range, 0u, ~0u, CLOSE_RANGE_UNSHARE) == 0) return {};
  if (unshare(CLONE_FILES) != 0) {
    return fail_errno(errno, "the system does not let a thread have its own descriptors");
  }
  DIR* listing = opendir("/proc/thread-self/fd");
  if (listing == nullptr) return fail_errno(errno, "cannot list the process's descriptors");
  while (const dirent* entry = readdir(listing)) {
    const int fd = atoi(entry->d_name);
    if (entry->d_name[0] != '.' && fd != dirfd(listing)) close(fd);
  }
  closedir(listing);
  return {};
}

// What some library believes to be stdin, stdout and stderr is nothing of ours.
Status occupy_standard_descriptors() {
  for (;;) {
    const int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (fd > STDERR_FILENO) return close(fd), Status();
    if (fd < 0 && eventfd(0, EFD_CLOEXEC) < 0) return fail_errno(errno, "no descriptors");
    if (fd < 0 && fcntl(STDERR_FILENO, F_GETFD) >= 0) return {};
  }
}

Result<sockaddr_un> address_of(const std::string& path, const Fd& directory) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() < sizeof address.sun_path) {
    path.copy(address.sun_path, path.size());
    return address;
  }
  // Too long for an address: by way of the open directory.
  std::snprintf(address.sun_path, sizeof address.sun_path, "/proc/thread-self/fd/%d/%s",
                directory.get(), control_socket_name);
  if (access("/proc/thread-self", F_OK) != 0) {
    return fail(ENAMETOOLONG, "%s is too long for a socket, and there is no /proc; set "
                              "MOLT_DIRECTORY to a shorter one", path.c_str());
  }
  return address;
}

std::string name_of_process(int pid) {
  const Fd fd(open(("/proc/" + std::to_string(pid) + "/comm").c_str(), O_RDONLY | O_CLOEXEC));
  char name[32];
  const ssize_t n = fd ? read(fd.get(), name, sizeof name) : -1;
  return n > 1 ? std::string(name, static_cast<std::size_t>(n) - 1) : "";
}

std::string usage_error(const tl::unexpected<Error>& error) {
  return error_reply({error.value(), wire::ErrorClass::usage});
}

// To someone who will not be a client: what does not fit into the socket's buffer is not sent.
void dismiss(const Fd& socket, const tl::unexpected<Error>& error, wire::ErrorClass kind) {
  std::string reply = error_reply({error.value(), kind});
  reply.push_back(wire::terminator);
  static_cast<void>(::send(socket.get(), reply.data(), reply.size(), MSG_DONTWAIT | MSG_NOSIGNAL));
}

}  // namespace

void ring() {
  bell.fetch_add(1, std::memory_order_release);
  futex_wake_all(bell);
}

Server::Server(std::string directory, const Limits& limits)
    : directory_(std::move(directory)), limits_(limits), workers_(limits.workers) {}

// --- start and stop -----------------------------------------------------------------------------

Status Server::start() {
  if (Status ok = workers_.start(); !ok) return ok;
  auto thread = start_thread("molt", molt_stack, run, this);
  if (thread) {
    thread_ = *thread;
    while (is_set_up_.load(std::memory_order_acquire) == 0) futex_wait(is_set_up_, 0);
    if (set_up_) return {};
    pthread_join(thread_, nullptr);
  } else {
    set_up_ = pass(thread);
  }
  workers_.stop();
  return set_up_;
}

void Server::stop() {
  is_stopping_.store(true, std::memory_order_release);
  ring();
  pthread_join(thread_, nullptr);
  workers_.stop();
}

void* Server::run(void* self) {
  auto& server = *static_cast<Server*>(self);
  server.set_up_ = server.set_up();
  const bool is_serving = server.set_up_.has_value();
  if (!is_serving) server.tear_down();
  server.is_set_up_.store(1, std::memory_order_release);
  futex_wake_all(server.is_set_up_);
  if (is_serving) {
    server.serve();
    server.tear_down();
  }
  return nullptr;
}

Status Server::set_up() {
  if (Status ok = leave_descriptor_table(); !ok) return ok;
  if (Status ok = occupy_standard_descriptors(); !ok) return ok;
  epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
  wake_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll_ || !wake_) return fail_errno(errno, "cannot make an epoll and an eventfd");
  if (Status ok = listen(); !ok) return ok;

  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = bell_id;
  bool added = epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) == 0;
  event.data.u64 = listener_id;
  added = added && epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, listener_.get(), &event) == 0;
  if (!added) return fail_errno(errno, "cannot watch the control socket");

  // Last: tear_down() knows by bell_thread_ whether there is one.
  auto thread = start_thread("molt-bell", bell_stack, run_bell, this);
  if (!thread) return pass(thread);
  bell_thread_ = *thread;
  return {};
}

Status Server::listen() {
  auto directory = process_directory(directory_);
  if (!directory) return pass(directory);
  directory_fd_.reset(open(directory->c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!directory_fd_) return fail_errno(errno, "%s", directory->c_str());
  socket_path_ = *directory + "/" + control_socket_name;
  auto address = address_of(socket_path_, directory_fd_);
  if (!address) return pass(address);

  listener_.reset(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener_) return fail_errno(errno, "cannot make a socket");
  unlinkat(directory_fd_.get(), control_socket_name, 0);  // what exec left
  if (bind(listener_.get(), reinterpret_cast<sockaddr*>(&*address), sizeof *address) != 0) {
    return fail_errno(errno, "cannot bind %s", socket_path_.c_str());
  }
  // The umask is the host's; the directory lets nobody else in meanwhile.
  if (fchmodat(directory_fd_.get(), control_socket_name, 0600, 0) != 0 ||
      ::listen(listener_.get(), backlog) != 0) {
    return fail_errno(errno, "cannot listen on %s", socket_path_.c_str());
  }
  return {};
}

// Whatever was opened is closed here: after this thread its numbers would mean the host's.
void Server::tear_down() {
  for (const Flight& flight : flights_) {
    flight.job->is_cancelled.store(true, std::memory_order_relaxed);
  }
  for (const auto& [id, connection] : connections_) {
    if (connection.is_streaming) streams.fetch_sub(1, std::memory_order_relaxed);
  }
  connections_.clear();
  flights_.clear();
  if (listener_) unlinkat(directory_fd_.get(), control_socket_name, 0);
  if (bell_thread_ != pthread_t{}) {
    is_bell_stopping_.store(true, std::memory_order_release);
    ring();
    pthread_join(bell_thread_, nullptr);
  }
  listener_.reset();
  wake_.reset();
  epoll_.reset();
  directory_fd_.reset();
}

void* Server::run_bell(void* self) {
  const auto& server = *static_cast<const Server*>(self);
  std::uint32_t heard = bell.load(std::memory_order_acquire);
  // Rings from before this thread looked are not missed: the `molt` thread begins with a look.
  while (!server.is_bell_stopping_.load(std::memory_order_acquire)) {
    futex_wait(bell, heard);
    const std::uint32_t now = bell.load(std::memory_order_acquire);
    if (now == heard) continue;
    heard = now;
    const std::uint64_t one = 1;
    static_cast<void>(!write(server.wake_.get(), &one, sizeof one));
  }
  return nullptr;
}

}  // namespace molt::control
