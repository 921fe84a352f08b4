// thread.cpp - threads that run module code. The core holds a reference on the module from before
// such a thread exists until it has left the module for good: the entry function is the core's, so
// no text of the module runs after the reference was dropped.

#include <limits.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/last_error.hpp"
#include "module/internal.hpp"
#include "threads/own_thread.hpp"

namespace molt::module {

struct Thread {
  Module* owner;  // null: the host's own
  void (*run)(void*);
  void* argument;
  std::string name;
  bool stoppable;
  bool handle_kept;  // someone holds the molt_thread*
  bool left = false;
  std::atomic<std::uint32_t> stop{0};
};

namespace {

thread_local Thread* t_self = nullptr;

// Runs also when the thread is cancelled or leaves by pthread_exit().
void leave(void* value) {
  auto* thread = static_cast<Thread*>(value);
  t_self = nullptr;
  Lock lock(manager().mutex);
  auto& all = manager().threads;
  all.erase(std::remove(all.begin(), all.end(), thread), all.end());
  if (thread->owner != nullptr) --thread->owner->refcnt;
  thread->left = true;
  // Whoever keeps the handle keeps nothing of the module.
  thread->run = nullptr;
  thread->argument = nullptr;
  if (!thread->handle_kept) delete thread;
  announce_change();
}

void* entry(void* value) {
  auto* thread = static_cast<Thread*>(value);
  t_self = thread;
  pthread_setname_np(pthread_self(), thread->name.c_str());
  threads::clean_stack_below();
  pthread_cleanup_push(leave, thread);
  thread->run(thread->argument);
  pthread_cleanup_pop(1);
  return nullptr;
}

void ask_to_stop(Thread& thread) {
  thread.stop.store(1, std::memory_order_release);
  futex_wake_all(thread.stop);
}

}  // namespace

int thread_count(const Module& module) {
  const auto& all = manager().threads;
  return static_cast<int>(
      std::count_if(all.begin(), all.end(), [&](Thread* t) { return t->owner == &module; }));
}

std::string thread_names(const Module& module) {
  std::string names;
  for (const Thread* thread : manager().threads) {
    if (thread->owner != &module) continue;
    if (!names.empty()) names += ", ";
    names += thread->name;
  }
  return names;
}

int stoppable_threads(const Module& module) {
  const auto& all = manager().threads;
  return static_cast<int>(std::count_if(
      all.begin(), all.end(), [&](Thread* t) { return t->owner == &module && t->stoppable; }));
}

bool stop_threads(Module& module, Deadline deadline, const Cancelled& cancelled) {
  Lock lock(manager().mutex);
  for (Thread* thread : manager().threads) {
    if (thread->owner == &module && thread->stoppable) ask_to_stop(*thread);
  }
  while (stoppable_threads(module) > 0) {
    if (!wait_for_change(lock, deadline, cancelled)) return false;
  }
  return true;
}

const Module* thread_owner() { return t_self ? t_self->owner : nullptr; }

void forget_threads_after_fork() {
  auto& all = manager().threads;
  for (Thread* thread : all) {
    if (thread == t_self) continue;
    if (thread->owner != nullptr) --thread->owner->refcnt;
    thread->left = true;
  }
  all.erase(std::remove_if(all.begin(), all.end(), [](Thread* t) { return t != t_self; }),
            all.end());
}

}  // namespace molt::module

using namespace molt;
using namespace molt::module;

extern "C" int molt_thread_start(molt_module* owner, const char* name, void (*run)(void*),
                                 void* argument, std::uint32_t flags, molt_thread** handle) {
  if (run == nullptr) return answer(fail(EINVAL, "a thread needs a function to run"));
  auto* thread = new Thread;
  thread->run = run;
  thread->argument = argument;
  thread->name = std::string(name ? name : "module").substr(0, 15);
  thread->stoppable = (flags & MOLT_THREAD_STOPPABLE) != 0;
  thread->handle_kept = handle != nullptr;
  {
    Lock lock(manager().mutex);
    thread->owner = find_descriptor(owner);
    if (thread->owner != nullptr) {
      if (thread->owner->state != MOLT_MODULE_STATE_LIVE &&
          thread->owner->state != MOLT_MODULE_STATE_COMING) {
        auto busy = fail(EBUSY, "%s is %s; no thread of it can begin now",
                         thread->owner->name.c_str(), state_text(thread->owner->state));
        delete thread;
        return answer(busy);
      }
      ++thread->owner->refcnt;
    }
    manager().threads.push_back(thread);
  }
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_t id;
  // Before it runs: it may be over, and freed, when pthread_create returns.
  if (handle != nullptr) *handle = reinterpret_cast<molt_thread*>(thread);
  int error = pthread_create(&id, &attributes, entry, thread);
  pthread_attr_destroy(&attributes);
  if (error == 0) return succeed();
  Lock lock(manager().mutex);
  auto& all = manager().threads;
  all.erase(std::remove(all.begin(), all.end(), thread), all.end());
  if (thread->owner != nullptr) --thread->owner->refcnt;
  if (handle != nullptr) *handle = nullptr;
  delete thread;
  announce_change();
  return answer(fail_errno(error, "cannot start thread %s", name ? name : "module"));
}

extern "C" bool molt_thread_should_stop() {
  return t_self != nullptr && t_self->stop.load(std::memory_order_acquire) != 0;
}

extern "C" bool molt_thread_sleep(int timeout_ms) {
  if (t_self == nullptr) {
    usleep(static_cast<useconds_t>(timeout_ms) * 1000);
    return false;
  }
  Deadline deadline = Deadline::in_ms(timeout_ms);
  while (t_self->stop.load(std::memory_order_acquire) == 0 && !deadline.passed()) {
    futex_wait(t_self->stop, 0, deadline);
  }
  return molt_thread_should_stop();
}

extern "C" void molt_thread_stop(molt_thread* handle) {
  auto* thread = reinterpret_cast<Thread*>(handle);
  if (thread == nullptr) return;
  Lock lock(manager().mutex);
  ask_to_stop(*thread);
  if (thread == t_self) {  // it cannot wait for itself: nobody needs the handle any more
    thread->handle_kept = false;
    return;
  }
  while (!thread->left) wait_for_change(lock, {}, {});
  delete thread;
}
