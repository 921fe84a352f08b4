// ok_target is what the ok_ patches replace functions of. Its worker thread sits in ok_slow while it
// is told to block; ok_uslow waits on behalf of a thread of the host, interruptibly.
#include <pthread.h>
#include <sys/epoll.h>
#include <unistd.h>
#include <molt/module.hpp>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <string_view>
#include <thread>

#include "control.hpp"

MOLT_PARAM(int, init_ret, 0, "what init answers", 0)

static std::mutex mutex;
static std::condition_variable changed;
static bool blocked, waiting, stopping;

extern "C" {
__attribute__((noipa, used)) const char* ok_fn_a() {
  asm volatile("");
  return "orig-a";
}
__attribute__((noipa, used)) const char* ok_fn_b() {
  asm volatile("");
  return "orig-b";
}

// Old and new versions of ok_slow wait by the same switch.
__attribute__((noipa, used)) bool ok_wait_while_blocked() {
  std::unique_lock lock(mutex);
  if (!blocked) return false;
  waiting = true;
  changed.notify_all();
  changed.wait(lock, [] { return !blocked; });
  return true;
}
__attribute__((noipa, used)) void ok_slow() {
  if (ok_wait_while_blocked()) molt_log(&molt_this_module, "ok_slow(orig) exit");
}

__attribute__((noipa, used)) int ok_uslow(int epoll) {
  molt_log(&molt_this_module, "ok_uslow(orig) enter");
  epoll_event event;
  const int result = epoll_wait(epoll, &event, 1, -1) < 0 ? -errno : 0;
  molt_log(&molt_this_module, "ok_uslow(orig) exit r=%d", result);
  return result;
}
}

MOLT_EXPORT(ok_wait_while_blocked)

static void run() {
  pthread_setname_np(pthread_self(), "ok_worker");
  for (;;) {
    ok_slow();
    std::unique_lock lock(mutex);
    waiting = false;
    changed.notify_all();
    changed.wait(lock, [] { return blocked || stopping; });
    if (stopping) return;
  }
}

static void tell(const char* where) {
  molt_log(&molt_this_module, "%s a=%s b=%s", where, ok_fn_a(), ok_fn_b());
}

static int control(const char* verb) {
  std::string_view what = verb;
  if (what == "call") {
    tell("call");
    return 0;
  }
  std::unique_lock lock(mutex);
  if (what == "block") {
    blocked = true;
    changed.notify_all();
    changed.wait(lock, [] { return waiting; });
    return 0;
  }
  if (what == "unblock") {
    blocked = false;
    changed.notify_all();
    changed.wait(lock, [] { return !waiting; });
    return 0;
  }
  if (what == "uslow") {
    lock.unlock();
    const int epoll = epoll_create1(EPOLL_CLOEXEC);
    while (ok_uslow(epoll) == -EINTR) {
    }
    close(epoll);
    return 0;
  }
  return -EINVAL;
}

// Not the core's thread: nobody holds a reference for it, as nobody does for the recorded worker.
static std::thread worker;

static int start() {
  tell("init");
  if (init_ret != 0) return init_ret;
  worker = std::thread(run);
  return 0;
}
static void finish() {
  tell("exit");
  {
    std::lock_guard lock(mutex);
    stopping = true;
    blocked = false;
    changed.notify_all();
  }
  worker.join();
}

MOLT_MODULE("ok_target", "1.0", "Apache-2.0", "has functions to be replaced")
MOLT_INIT(start)
MOLT_EXIT(finish)
MOLT_HOOK(control_point, control, MOLT_ORDER_NORMAL, MOLT_OPTIONAL)
