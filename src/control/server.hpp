// server.hpp - the control socket, and the threads that serve it.
//
// Roles      The `molt` thread reads requests and writes replies, for all clients; it answers what is
//            quick itself. Workers (workers.hpp) do what may block or runs module code. The
//            `molt-bell` thread sleeps on a word of memory, and wakes the `molt` thread when any
//            thread of the process has changed it. The host's threads do nothing but ring.
//            An agent (Role) has a bell only while somebody may ring: then it sleeps with two threads,
//            `molt` and a worker.
// State      On the `molt` thread alone: connections, jobs under way and the files that came with
//            them. Shared: the bell, jobs that are done, whether to stop.
// Invariants S1 The `molt` and `molt-bell` threads have a descriptor table of their own, made empty
//               before anything is opened in it. So the host's limit, its close-everything loops and
//               its counts never meet our descriptors, nor does a child of fork inherit them; and no
//               thread outside may use one of their numbers.
//            S2 No module code runs on these two threads, and nothing there waits but epoll_wait()
//               and the bell.
//            S3 A connection has at most one request under way, and is read no further until it is
//               answered and the answer is taken. So what the process keeps for a client is bounded
//               (connection.hpp), and a flood waits in the client's own socket buffer.
//            S4 Each round serves at most one request of each connection.
//            S6 Who rings is heard: before an operation is handed to a worker, a client begins to
//               follow the log, releases may be delayed or the server may be stopped, there is a bell,
//               and it stays until none of that is left. Where none can be made that is refused.
//            S5 Workers never touch a connection: a job is all they see, and it outlives the client.
//            S7 Whoever starts what is started already finds out whether the socket's name still leads to it,
//               and has it made anew where it does not: somebody removed the file, or the process has
//               another root since. Nothing looks by itself: an agent of whom nothing is asked sleeps.
// Order      A worker: reply written, job put on the list of done ones under the lock, then the bell.
//            The `molt` thread: bell's counter read, then the list. So no job is overlooked.
// Progress   One client never waits for another's operation. With as many operations under way as
//            there may be, new ones are refused. The 65th client takes the place of one who does
//            nothing: of the process that has most connections, the one that was silent longest.
// Death      A client that goes cancels its operation. Host's fork: the child has none of the threads
//            and no descriptor of theirs; it forgets the server (control.hpp) and may start another.
//            Host's exec: all goes; the socket's file is replaced at the next start.
// Refuses    Peers that are neither root nor our effective user; whatever is no request.
// Checked by tests/control/server_test.cpp, hostile_test.cpp, host_test.cpp; tests/fuzz/wire.cpp
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "control/connection.hpp"
#include "control/workers.hpp"

namespace molt::control {

// Who may stop the server: the host, at any time; an agent, which was put in from outside, ends only at a
// client's request.
enum class Role { host, agent };

// Tests use smaller ones.
struct Limits {
  std::size_t connections = 64;
  std::size_t jobs = 256;   // under way, those of clients that went included
  int partial_ms = 10'000;  // from the first byte of a request to its last
  int unread_ms = 10'000;   // for a client to take any of a reply
  int bell_ms = 3'000;      // an agent's bell stays for so long when nobody is left to ring
  Workers::Limits workers;
};

class Server {
 public:
  Server(std::string directory, const Limits& limits, Role role = Role::host);

  // Once. On failure nothing is left.
  [[nodiscard]] Status start();
  // Once, after start() succeeded. Waits for operations under way. Not on a worker.
  void stop();
  // The same, but cancels nothing, and not before all answers are taken, or `unread_ms` have passed.
  void stop_when_quiet();
  // On a worker, so there is a bell: it stays (S6).
  void expect_stop(bool on) { is_stop_expected_.store(on, std::memory_order_release); }

  // S7. EALREADY: nothing was to be done. ENOTCONN, of an agent: the `molt` thread, which does it, did not come to it
  // at once; without a bell nobody in this process can wake it, but whoever may trace it can. The next call goes on
  // with it. One thread at a time.
  [[nodiscard]] Status mend();

  bool is_agent() const { return role_ == Role::agent; }
  bool is_worker() const { return workers_.is_worker(); }
  // Valid after start().
  std::string socket_path() const {
    std::lock_guard lock(place_mutex_);
    return place_.path;
  }

 private:
  struct Flight {
    std::shared_ptr<Job> job;
    Fd file;
  };

  // --- the two threads ---
  static void* run(void* self);
  static void* run_bell(void* self);
  [[nodiscard]] Status set_up();
  [[nodiscard]] Status listen();
  [[nodiscard]] Status bind_in_directory();
  [[nodiscard]] Status bind_abstract();
  [[nodiscard]] Status watch_listener_too();
  [[nodiscard]] bool is_lost() const;
  void mend_now();
  void serve();
  void tear_down();

  // --- one round ---
  [[nodiscard]] bool may_be_rung() const;
  [[nodiscard]] Status begin_bell();
  void end_bell();
  void tend_bell();
  [[nodiscard]] int next_round_ms();
  [[nodiscard]] bool is_over() const;
  void watch_listener(bool on);
  void accept_clients();
  void greet(Fd socket);
  bool is_full() const { return connections_.size() >= limits_.connections; }
  [[nodiscard]] bool make_room();
  void on_event(std::uint64_t id, std::uint32_t events);
  void take_done();
  void stream_events(Connection& connection);
  void serve_next(Connection& connection);
  void serve_message(Connection& connection, Inbox::Message message);
  void submit(Connection& connection, const Call& call, Fd file);
  void check_patience(Connection& connection);
  void drop_finished();
  void watch(Connection& connection);

  void work(const std::shared_ptr<Job>& job);

  const std::string directory_;
  const Limits limits_;
  const Role role_;
  Workers workers_;
  pthread_t thread_{};
  pthread_t bell_thread_{};

  // Written by the `molt` thread.
  struct Place {
    std::string path;  // begins with @ where there is no file
    dev_t device = 0;
    ino_t file = 0;
  };
  mutable std::mutex place_mutex_;
  Place place_;
  Status mended_;
  std::atomic<bool> is_mend_asked_{false};
  std::atomic<std::uint32_t> mends_{0};  // counted when mended_ is valid

  // start() waits for the first, which says that the second is valid.
  std::atomic<std::uint32_t> is_set_up_{0};
  Status set_up_;
  std::atomic<bool> is_stopping_{false};
  std::atomic<bool> is_stop_expected_{false};
  std::atomic<std::int64_t> quiet_until_ns_{0};  // 0: does not wait for quiet

  std::mutex done_mutex_;
  std::vector<std::shared_ptr<Job>> done_;

  // The `molt` thread's (S1).
  Fd directory_fd_, epoll_, wake_, listener_;
  std::uint32_t bell_heard_ = 0;  // written while there is no bell
  std::atomic<bool> is_bell_stopping_{false};
  std::map<std::uint64_t, Connection> connections_;
  std::vector<Flight> flights_;
  std::uint64_t next_id_ = 2;  // 0 and 1 are the listener's and the bell's
  Deadline accept_again_;      // no descriptors were left
  Deadline release_at_;
  Deadline bell_until_;
};

// From any thread, at any time: the `molt` thread looks again at what there is to do.
void ring();
// For log::set_listener: rings if a client follows the log.
void on_log_line();

}  // namespace molt::control
