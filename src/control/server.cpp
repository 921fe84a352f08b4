#include "control/server.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
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
#include <cstring>
#include <tuple>

#include "abi/wire.hpp"
#include "base/descriptor_room.hpp"
#include "base/directory.hpp"
#include "base/futex.hpp"
#include "base/own_fd.hpp"
#include "control/errors.hpp"
#include "control/parcel.hpp"
#include "threads/own_thread.hpp"

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
// A thread that was rung comes, however late it is given a turn; the longer is for one that has ended.
constexpr int mend_rung_ms = 10'000;
constexpr int mend_unrung_ms = 20;
// In one reply to who follows the log.
constexpr std::size_t events_at_once = 256;

// Never reset, and outside of any server: whoever rings need not know whether one is left.
std::atomic<std::uint32_t> bell{0};
std::atomic<int> streams{0};

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
    return fail(ENAMETOOLONG,
                "%s is too long for a socket, and there is no /proc; set "
                "MOLT_DIRECTORY to a shorter one",
                path.c_str());
  }
  return address;
}

std::string name_of_process(int pid) {
  const Fd fd(open(("/proc/" + std::to_string(pid) + "/comm").c_str(), O_RDONLY | O_CLOEXEC));
  char name[32];
  const ssize_t n = fd ? read(fd.get(), name, sizeof name) : -1;
  return n > 1 ? std::string(name, static_cast<std::size_t>(n) - 1) : "";
}

// Its file is closed before the client knows of the end.
std::string reply_to(const Job& job) {
  if (job.is_cancelled.load(std::memory_order_relaxed)) return "";
  const DescriptorRoom room;
  if (job.has_file && !room.is_there()) {
    return error_reply(
        {fail(EMFILE,
              "all descriptors that process %d may have are in use, and it may not raise "
              "its limit; raise it: prlimit --pid %d --nofile",
              getpid(), getpid())
             .value(),
         wire::ErrorClass::failed});
  }
  auto unpacked = job.has_file ? job.parcel.unpack() : Result<OwnFd>(OwnFd());
  if (!unpacked) {
    const Error error = explain_closed(unpacked.error());
    return error_reply({error, classify(Asked::load, error)});
  }
  const OwnFd file = std::move(*unpacked);
  const log::RequesterScope scope(job.requester);
  return job.call.run({job.requester, file.get(), &job.is_cancelled, job.session.get()});
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

// Whoever begins to follow the log counts itself before it reads the log, under the log's lock: a
// line that it does not find there is written later, and its writer sees the count.
void on_log_line() {
  if (streams.load(std::memory_order_relaxed) > 0) ring();
}

Server::Server(std::string directory, const Limits& limits, Role role)
    : directory_(std::move(directory)), limits_(limits), role_(role), workers_(limits.workers) {}

// --- start and stop -----------------------------------------------------------------------------

Status Server::start() {
  if (Status ok = workers_.start(); !ok) return ok;
  auto thread = threads::start_thread("molt", molt_stack, run, this);
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

void Server::stop_when_quiet() {
  quiet_until_ns_.store(Deadline::in_ms(limits_.unread_ms).at_ns, std::memory_order_relaxed);
  stop();
}

bool Server::is_over() const {
  if (!is_stopping_.load(std::memory_order_acquire)) return false;
  if (Deadline{quiet_until_ns_.load(std::memory_order_relaxed)}.passed()) return true;
  return flights_.empty() &&
         std::none_of(connections_.begin(), connections_.end(), [](const auto& entry) {
           return entry.second.has_unsent() || entry.second.has_request();
         });
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
  if (Status ok = threads::leave_descriptor_table(); !ok) return ok;
  if (Status ok = threads::occupy_standard_descriptors(); !ok) return ok;
  epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
  wake_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll_ || !wake_) return fail_errno(errno, "cannot make an epoll and an eventfd");
  if (Status ok = listen(); !ok) return ok;

  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = bell_id;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0) {
    return fail_errno(errno, "cannot watch an eventfd");
  }
  if (Status ok = watch_listener_too(); !ok) return ok;

  return may_be_rung() ? begin_bell() : Status();
}

Status Server::watch_listener_too() {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = listener_id;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, listener_.get(), &event) != 0) {
    return fail_errno(errno, "cannot watch the control socket");
  }
  return {};
}

Status Server::listen() {
  if (Status bound = bind_in_directory(); !bound) {
    if (Status ok = bind_abstract(); !ok) return bound;
    log::line("", "molt: %s; the control socket has no path", bound.error().detail);
  }
  if (::listen(listener_.get(), backlog) != 0) {
    return fail_errno(errno, "cannot listen on %s", socket_path().c_str());
  }
  return {};
}

Status Server::bind_in_directory() {
  auto directory = process_directory(directory_);
  if (!directory) return pass(directory);
  directory_fd_.reset(open(directory->c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!directory_fd_) return fail_errno(errno, "%s", directory->c_str());
  const std::string path = *directory + "/" + control_socket_name;
  auto address = address_of(path, directory_fd_);
  if (!address) return pass(address);

  listener_.reset(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener_) return fail_errno(errno, "cannot make a socket");
  unlinkat(directory_fd_.get(), control_socket_name, 0);  // what exec left
  // The umask is the host's; the directory lets nobody else in meanwhile.
  if (bind(listener_.get(), reinterpret_cast<sockaddr*>(&*address), sizeof *address) != 0 ||
      fchmodat(directory_fd_.get(), control_socket_name, 0600, 0) != 0) {
    return fail_errno(errno, "cannot bind %s", path.c_str());
  }
  struct stat file {};
  if (fstatat(directory_fd_.get(), control_socket_name, &file, AT_SYMLINK_NOFOLLOW) != 0) {
    return fail_errno(errno, "%s", path.c_str());
  }
  std::lock_guard lock(place_mutex_);
  place_ = {path, file.st_dev, file.st_ino};
  return {};
}

// Anybody may connect to it, and is looked at in greet(); anybody may have such a name, so clients look
// at whose it is.
Status Server::bind_abstract() {
  directory_fd_.reset();
  std::uint64_t random = 0;
  if (getrandom(&random, sizeof random, GRND_NONBLOCK) != sizeof random) {
    random = static_cast<std::uint64_t>(now_ns());
  }
  char name[64];
  const int length =
      std::snprintf(name, sizeof name, "%s%d/%016llx", std::string(wire::abstract_prefix).c_str(),
                    getpid(), static_cast<unsigned long long>(random));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name, static_cast<std::size_t>(length));
  listener_.reset(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener_) return fail_errno(errno, "cannot make a socket");
  const auto bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 +
                                            static_cast<std::size_t>(length));
  if (bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), bytes) != 0) {
    return fail_errno(errno, "cannot bind @%s", name);
  }
  std::lock_guard lock(place_mutex_);
  place_ = {std::string("@") + name};
  return {};
}

// --- made anew ----------------------------------------------------------------------------------

bool Server::is_lost() const {
  std::lock_guard lock(place_mutex_);
  if (place_.path.starts_with('@')) return false;
  struct stat file {};
  if (stat(place_.path.c_str(), &file) != 0) return errno == ENOENT || errno == ENOTDIR;
  return file.st_dev != place_.device || file.st_ino != place_.file;
}

Status Server::mend() {
  const std::uint32_t before = mends_.load(std::memory_order_acquire);
  if (!is_lost()) return fail(EALREADY, "the control socket is open already");
  is_mend_asked_.store(true, std::memory_order_release);
  ring();
  for (const Deadline deadline = Deadline::in_ms(is_agent() ? mend_unrung_ms : mend_rung_ms);
       mends_.load(std::memory_order_acquire) == before; futex_wait(mends_, before, deadline)) {
    if (deadline.passed()) {
      return fail(ENOTCONN, "the control socket was removed, and its thread sleeps");
    }
  }
  std::lock_guard lock(place_mutex_);
  return mended_;
}

void Server::mend_now() {
  if (!is_mend_asked_.exchange(false, std::memory_order_acq_rel)) return;
  Status done;
  if (is_lost()) {
    log::line("", "molt: the control socket was removed, and is made anew");
    listener_.reset();
    done = listen();
    if (done) done = watch_listener_too();
  }
  {
    std::lock_guard lock(place_mutex_);
    mended_ = done;
  }
  mends_.fetch_add(1, std::memory_order_release);
  futex_wake_all(mends_);
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
  if (directory_fd_) unlinkat(directory_fd_.get(), control_socket_name, 0);
  end_bell();
  listener_.reset();
  wake_.reset();
  epoll_.reset();
  directory_fd_.reset();
}

// --- the bell -----------------------------------------------------------------------------------

// S6. What a host's own threads do comes at any time; of an agent's process nobody knows that it is there.
bool Server::may_be_rung() const {
  return role_ == Role::host || !flights_.empty() || delay_release_ms() > 0 ||
         is_stop_expected_.load(std::memory_order_acquire) ||
         std::any_of(connections_.begin(), connections_.end(),
                     [](const auto& entry) { return entry.second.is_streaming; });
}

Status Server::begin_bell() {
  bell_until_ = Deadline::in_ms(limits_.bell_ms);
  if (bell_thread_ != pthread_t{}) return {};
  bell_heard_ = bell.load(std::memory_order_acquire);
  is_bell_stopping_.store(false, std::memory_order_relaxed);
  auto thread = threads::start_thread("molt-bell", bell_stack, run_bell, this);
  if (!thread) return pass(thread);
  bell_thread_ = *thread;
  return {};
}

void Server::end_bell() {
  if (bell_thread_ == pthread_t{}) return;
  is_bell_stopping_.store(true, std::memory_order_release);
  ring();
  pthread_join(bell_thread_, nullptr);
  bell_thread_ = {};
}

void Server::tend_bell() {
  if (bell_thread_ == pthread_t{}) return;
  if (may_be_rung()) {
    bell_until_ = Deadline::in_ms(limits_.bell_ms);
  } else if (bell_until_.passed()) {
    end_bell();
    eventfd_t rings;
    eventfd_read(wake_.get(), &rings);
  }
}

void* Server::run_bell(void* self) {
  const auto& server = *static_cast<const Server*>(self);
  std::uint32_t heard = server.bell_heard_;
  while (!server.is_bell_stopping_.load(std::memory_order_acquire)) {
    futex_wait(bell, heard);
    const std::uint32_t now = bell.load(std::memory_order_acquire);
    if (now == heard) continue;
    heard = now;
    eventfd_write(server.wake_.get(), 1);
  }
  return nullptr;
}

// --- one round after another --------------------------------------------------------------------

void Server::serve() {
  epoll_event events[32];
  while (!is_over()) {
    const int n =
        epoll_wait(epoll_.get(), events, static_cast<int>(std::size(events)), next_round_ms());
    if (n < 0 && errno != EINTR) return;  // it cannot come to that; if it does, no busy loop
    for (int i = 0; i < n; ++i) on_event(events[i].data.u64, events[i].events);
    mend_now();
    if (accept_again_.passed()) watch_listener(true);
    take_done();
    for (auto& [id, connection] : connections_) {
      stream_events(connection);
      serve_next(connection);
      check_patience(connection);
    }
    release_at_ = release_delayed();
    drop_finished();
    tend_bell();
    for (auto& [id, connection] : connections_) watch(connection);
  }
}

int Server::next_round_ms() {
  Deadline next = release_at_.sooner(accept_again_);
  for (const auto& [id, connection] : connections_) {
    if (connection.has_request()) return 0;
    if (connection.is_streaming && connection.is_behind && !connection.has_unsent()) return 0;
    next = next.sooner(connection.patience(limits_.partial_ms, limits_.unread_ms));
  }
  if (bell_thread_ != pthread_t{} && !may_be_rung()) next = next.sooner(bell_until_);
  if (next.at_ns == INT64_MAX) return -1;
  // Rounded up: a round that comes a moment too early would be followed by a busy one.
  const std::int64_t left_ms = (next.at_ns - now_ns()) / 1'000'000 + 1;
  return static_cast<int>(std::clamp<std::int64_t>(left_ms, 0, 60'000));
}

void Server::on_event(std::uint64_t id, std::uint32_t events) {
  if (id == listener_id) return accept_clients();
  if (id == bell_id) {
    eventfd_t rings;
    eventfd_read(wake_.get(), &rings);
    return;
  }
  const auto at = connections_.find(id);
  if (at == connections_.end()) return;  // dropped in this round
  Connection& connection = at->second;
  // The client closed; one that only ended its sending gets its answers still.
  if ((events & (EPOLLHUP | EPOLLERR)) != 0) return connection.drop();
  if ((events & EPOLLOUT) != 0) connection.flush();
  if ((events & EPOLLIN) != 0 && connection.wants_input()) connection.receive();
}

void Server::watch(Connection& connection) {
  epoll_event event{};
  event.data.u64 = connection.id();
  if (connection.wants_input()) event.events |= EPOLLIN;
  if (connection.has_unsent()) event.events |= EPOLLOUT;
  if (event.events == connection.interest) return;
  connection.interest = event.events;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, connection.socket(), &event) != 0) connection.drop();
}

void Server::check_patience(Connection& connection) {
  if (!connection.patience(limits_.partial_ms, limits_.unread_ms).passed()) return;
  if (!connection.has_unsent()) {
    connection.send(usage_error(fail(ETIMEDOUT, "the request began %d s ago and is not complete",
                                     limits_.partial_ms / 1000)));
    return connection.finish();
  }
  connection.drop();
}

void Server::drop_finished() {
  for (auto at = connections_.begin(); at != connections_.end();) {
    const Connection& connection = at->second;
    if (!connection.is_over()) {
      ++at;
      continue;
    }
    if (connection.is_streaming) streams.fetch_sub(1, std::memory_order_relaxed);
    if (connection.job) connection.job->is_cancelled.store(true, std::memory_order_relaxed);
    at = connections_.erase(at);
  }
}

// --- clients come -------------------------------------------------------------------------------

void Server::watch_listener(bool on) {
  epoll_event event{};
  if (on) event.events = EPOLLIN;
  event.data.u64 = listener_id;
  epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, listener_.get(), &event);
  accept_again_ = on ? Deadline{} : Deadline::in_ms(accept_pause_ms);
}

void Server::accept_clients() {
  for (int i = 0; i < backlog; ++i) {
    if (is_full() && !make_room()) {
      // Some may go in this round: then the newcomer waits for the next one. Else it is told.
      const bool will_change = std::any_of(
          connections_.begin(), connections_.end(),
          [](const auto& entry) { return entry.second.has_request() || entry.second.is_over(); });
      if (will_change) return;
    }
    Fd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket) {
      greet(std::move(socket));
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      if (make_room()) continue;
      return watch_listener(false);
    } else if (errno != EINTR && errno != ECONNABORTED) {
      return;
    }
  }
}

void Server::greet(Fd socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return;
  if (peer.uid != 0 && peer.uid != geteuid()) {
    return dismiss(socket,
                   fail(EPERM,
                        "process %d belongs to user %u, and you are user %u; run "
                        "molt as that user or as root",
                        getpid(), geteuid(), peer.uid),
                   wire::ErrorClass::permission);
  }
  if (is_full()) {
    return dismiss(
        socket,
        fail(EUSERS, "%zu clients have operations under way; try again later", connections_.size()),
        wire::ErrorClass::failed);
  }
  const std::uint64_t id = next_id_++;
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = id;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, socket.get(), &event) != 0) return;
  log::Requester requester{peer.pid, peer.uid, name_of_process(peer.pid)};
  const auto [at, is_new] =
      connections_.try_emplace(id, id, std::move(socket), std::move(requester));
  at->second.interest = event.events;
}

// Drops, of the idle clients, one of the process that has most connections; of those, the longest
// silent.
bool Server::make_room() {
  std::map<int, int> held;
  for (const auto& [id, connection] : connections_) ++held[connection.peer().pid];
  const auto importance = [&](const Connection& c) {
    return std::tuple(-held[c.peer().pid], c.last_active_ns());
  };
  for (;;) {
    Connection* least = nullptr;
    for (auto& [id, connection] : connections_) {
      if (!connection.is_idle()) continue;
      if (least == nullptr || importance(connection) < importance(*least)) least = &connection;
    }
    if (least == nullptr) return false;
    // Its request may be there already, and only not have been read.
    if (least->receive()) continue;
    least->send(
        error_reply({fail(EUSERS, "too many clients, and this one was idle; connect again").value(),
                     wire::ErrorClass::failed}));
    connections_.erase(least->id());
    return true;
  }
}

// --- requests -----------------------------------------------------------------------------------

void Server::serve_next(Connection& connection) {
  if (!connection.has_request()) return;
  Inbox::Message message;
  switch (connection.take_request(message)) {
    case Inbox::Next::none:
      return;
    case Inbox::Next::too_long:
      connection.send(
          usage_error(fail(EMSGSIZE, "a request has at most %zu bytes", wire::request_bytes_max)));
      return connection.finish();
    case Inbox::Next::message:
      return serve_message(connection, std::move(message));
  }
}

void Server::serve_message(Connection& connection, Inbox::Message message) {
  const auto call = Call::read(message.text);
  if (!call) {
    connection.send(error_reply({call.error(), wire::ErrorClass::usage}));
    if (call.error().code == EBADMSG) connection.finish();
  } else if (call->is_stream()) {
    if (Status ok = begin_bell(); !ok) {
      return connection.send(error_reply({ok.error(), wire::ErrorClass::failed}));
    }
    streams.fetch_add(1, std::memory_order_relaxed);
    connection.is_streaming = true;
    connection.next_event = call->stream_from();
    const EventsReply first = events_reply(connection.next_event, events_at_once);
    connection.next_event = first.next;
    connection.is_behind = first.has_more;
    connection.send(first.text);
  } else if (call->is_slow()) {
    submit(connection, *call, std::move(message.file));
  } else {
    Caller caller;
    caller.requester = connection.peer();
    caller.session = connection.session().get();
    connection.send(call->run(caller));
  }
}

void Server::submit(Connection& connection, const Call& call, Fd file) {
  if (flights_.size() >= limits_.jobs) {
    return connection.send(error_reply(
        {fail(EAGAIN, "%zu operations are under way; try again later", flights_.size()).value(),
         wire::ErrorClass::failed}));
  }
  if (Status ok = begin_bell(); !ok) {
    return connection.send(error_reply({ok.error(), wire::ErrorClass::failed}));
  }
  auto job = std::make_shared<Job>(connection.id(), call, connection.peer(), connection.session());
  if (file && call.takes_file()) {
    auto parcel = Parcel::pack(file);
    if (!parcel) {
      return connection.send(error_reply({parcel.error(), classify(Asked::load, parcel.error())}));
    }
    job->parcel = std::move(*parcel);
    job->has_file = true;
  }
  connection.job = job;
  flights_.push_back({job, std::move(file)});
  workers_.submit([this, job] { work(job); });
}

// On a worker.
void Server::work(const std::shared_ptr<Job>& job) {
  const int pid = getpid();
  job->reply = reply_to(*job);
  // In the child of a fork by module code nobody waits for this, and the lock may be held by nobody.
  if (getpid() != pid) return;
  {
    std::lock_guard lock(done_mutex_);
    done_.push_back(job);
  }
  ring();
}

void Server::take_done() {
  std::vector<std::shared_ptr<Job>> done;
  {
    std::lock_guard lock(done_mutex_);
    done.swap(done_);
  }
  for (const std::shared_ptr<Job>& job : done) {
    std::erase_if(flights_, [&](const Flight& flight) { return flight.job == job; });
    const auto at = connections_.find(job->connection);
    if (at == connections_.end()) continue;
    at->second.job = nullptr;
    at->second.send(job->reply);
  }
}

void Server::stream_events(Connection& connection) {
  if (!connection.is_streaming || connection.has_unsent()) return;
  // A client that reads slowly is told how many events it has missed; nothing piles up here.
  const EventsReply more = events_reply(connection.next_event, events_at_once);
  connection.next_event = more.next;
  connection.is_behind = more.has_more;
  if (!more.is_empty) connection.send(more.text);
}

}  // namespace molt::control
