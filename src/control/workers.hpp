// workers.hpp - the threads on which operations run, so that the `molt` thread never has to wait.
//
// Roles      The `molt` thread submits; workers take work, and make more workers. Named "molt-worker".
// State      The queue; how many workers there are, and how many of them are idle.
// Invariants W1 Every worker was created by another one, the first by start()'s caller: so all have
//               the host's descriptor table, and what a module opens on one is open for the host. The
//               `molt` thread, which has another table, never creates one.
//            W2 Before a worker begins with work, there is another idle one, as long as there are
//               fewer than `most` and the system grants threads. So what waits (for a module, for a
//               drain) holds up nobody.
// Progress   Beyond W2, work waits for the first worker that becomes idle. Idle workers beyond one end
//            after a while; the one does not wake up until there is work.
// Death      fork: the child has none of them. If the child is made by work itself (a module that
//            forks), its only thread is a worker without a pool: it ends after that work.
// Checked by tests/control/workers_test.cpp
#pragma once

#include <pthread.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <vector>

#include "base/result.hpp"

namespace molt::control {

class Workers {
 public:
  struct Limits {
    int most = 64;
    int idle_ms = 10'000;
  };
  explicit Workers(Limits limits);

  // Once.
  [[nodiscard]] Status start();
  void submit(std::function<void()> work);
  // Drops what has not begun, waits for what has. Not on a worker.
  void stop();

  [[nodiscard]] bool is_worker() const;
  [[nodiscard]] int count() const;

 private:
  static void* run(void* self);
  void work();
  [[nodiscard]] Status add_locked();
  void join_ended_locked();

  const Limits limits_;
  const int pid_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  std::vector<pthread_t> threads_;
  std::vector<pthread_t> ended_;  // to be joined
  int idle_ = 0;
  bool is_stopping_ = false;
};

}  // namespace molt::control
