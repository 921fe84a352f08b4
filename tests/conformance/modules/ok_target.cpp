// ok_target is what the ok_ patches replace functions of. Its worker thread sits in ok_slow while it
// is told to block; ok_uslow waits on behalf of a thread of the host, interruptibly.
#include <sys/epoll.h>
#include <unistd.h>
#include <molt/module.hpp>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <string_view>

#include "control.hpp"

MOLT_PARAM(int, init_ret, 0, "what init answers", 0)

static std::mutex mutex;
static std::condition_variable changed;
static bool blocked;

extern "C" {
__attribute__((noipa, used)) const char* ok_fn_a() {
  asm volatile("");
  return "orig-a";
}
__attribute__((noipa, used)) const char* ok_fn_b() {
  asm volatile("");
  return "orig-b";
}

__attribute__((noipa, used)) bool ok_wait_while_blocked() {
  std::unique_lock lock(mutex);
  if (!blocked) return false;
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

static bool in_slow;
static void run(void*) {
  while (!molt_thread_should_stop()) {
    {
      std::unique_lock lock(mutex);
      // tidy: sleep-ok bounded wait for a request to stop, which notifies nobody here
      changed.wait_for(lock, std::chrono::milliseconds(5), [] { return blocked; });
      in_slow = blocked;
      changed.notify_all();
    }
    ok_slow();
    std::lock_guard lock(mutex);
    in_slow = false;
    changed.notify_all();
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
  if (what == "block") {
    std::unique_lock lock(mutex);
    blocked = true;
    changed.notify_all();
    changed.wait(lock, [] { return in_slow; });
    return 0;
  }
  if (what == "unblock") {
    std::unique_lock lock(mutex);
    blocked = false;
    changed.notify_all();
    changed.wait(lock, [] { return !in_slow; });
    return 0;
  }
  return -EINVAL;
}

static molt_thread* worker;

static int start() {
  tell("init");
  if (init_ret != 0) return init_ret;
  return molt_thread_start(&molt_this_module, "ok_worker", run, nullptr, MOLT_THREAD_STOPPABLE,
                           &worker);
}
static void finish() { tell("exit"); }

MOLT_MODULE("ok_target", "1.0", "Apache-2.0", "has functions to be replaced")
MOLT_INIT(start)
MOLT_EXIT(finish)
MOLT_HOOK(control_point, control, MOLT_ORDER_NORMAL, MOLT_OPTIONAL)
