#include "control/workers.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "threads/own_thread.hpp"

namespace molt::control {

Workers::Workers(Limits limits) : limits_(limits), pid_(getpid()) {}

namespace {

// What module code leaves behind on this stack lies below where an idle worker stands, and so is no
// business of a proof that the worker is out of that module (threads/residency.hpp).
[[gnu::noinline]] void run_far_below(const std::function<void()>& task) {
  char gap[4096];
  asm volatile("" : : "r"(gap) : "memory");
  threads::clean_stack_below();
  task();
  asm volatile("" : : "r"(gap) : "memory");
}

}  // namespace

Status Workers::start() {
  std::lock_guard lock(mutex_);
  return add_locked();
}

void Workers::submit(std::function<void()> work) {
  std::lock_guard lock(mutex_);
  queue_.push_back(std::move(work));
  changed_.notify_one();
}

void Workers::stop() {
  std::unique_lock lock(mutex_);
  is_stopping_ = true;
  queue_.clear();
  changed_.notify_all();
  changed_.wait(lock, [&] { return threads_.empty(); });
  join_ended_locked();
}

bool Workers::is_worker() const {
  std::lock_guard lock(mutex_);
  return std::any_of(threads_.begin(), threads_.end(),
                     [](pthread_t thread) { return pthread_equal(thread, pthread_self()); });
}

int Workers::count() const {
  std::lock_guard lock(mutex_);
  return static_cast<int>(threads_.size());
}

// Counts it as idle at once, so that nobody makes another for the same need.
Status Workers::add_locked() {
  join_ended_locked();
  // Modules' code runs on it: as much stack as any thread of the host has.
  auto thread = threads::start_thread("molt-worker", threads::default_stack, run, this);
  if (!thread) return pass(thread);
  threads_.push_back(*thread);
  ++idle_;
  return {};
}

// They hold no lock and only have to leave.
void Workers::join_ended_locked() {
  for (pthread_t thread : ended_) pthread_join(thread, nullptr);
  ended_.clear();
}

void* Workers::run(void* self) {
  static_cast<Workers*>(self)->work();
  return nullptr;
}

void Workers::work() {
  const auto long_enough = std::chrono::milliseconds(limits_.idle_ms);
  std::unique_lock lock(mutex_);
  for (;;) {
    const auto is_asked = [&] { return !queue_.empty() || is_stopping_; };
    bool was_woken = true;
    if (idle_ > 1) {
      was_woken = changed_.wait_for(lock, long_enough, is_asked);
    } else {
      changed_.wait(lock, is_asked);
    }
    if (is_stopping_ || (!was_woken && idle_ > 1)) break;
    if (!was_woken) continue;

    auto task = std::move(queue_.front());
    queue_.pop_front();
    --idle_;
    const bool may_grow = static_cast<int>(threads_.size()) < limits_.most;
    if (idle_ == 0 && may_grow) static_cast<void>(add_locked());  // W2; without, others wait
    lock.unlock();
    run_far_below(task);
    task = nullptr;
    // What the task held has ended right here, where an idle worker stands.
    threads::clean_stack_below();
    if (getpid() != pid_) return;  // forked meanwhile: the lock may be one that nobody unlocks
    lock.lock();
    ++idle_;
  }
  --idle_;
  threads_.erase(std::find_if(threads_.begin(), threads_.end(), [](pthread_t thread) {
    return pthread_equal(thread, pthread_self());
  }));
  ended_.push_back(pthread_self());
  changed_.notify_all();
}

}  // namespace molt::control
