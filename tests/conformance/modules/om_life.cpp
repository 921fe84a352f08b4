// om_life tells of its own life, in the words of the recorded logs. Built three times: as om_life,
// as om_life2, and as x_samename: another file whose module is called om_life too.
#include <molt/module.hpp>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "control.hpp"

MOLT_PARAM(int, init_ret, 0, "what init answers", 0)
MOLT_PARAM(int, init_ms, 0, "how long init takes", 0)
MOLT_PARAM(int, exit_ms, 0, "how long exit takes", 0)
MOLT_PARAM(int, leak, 0, "references that init takes and does not put", 0)

extern "C" int OM_FUNCTION() { return 42; }
#define OM_EXPORT(function) MOLT_EXPORT(function, MOLT_RESTRICTED)
OM_EXPORT(OM_FUNCTION)

static void take(int ms) {
  // A module that takes its time is what these scenarios are about.
  // tidy: sleep-ok nothing to wait for
  if (ms > 0) std::this_thread::sleep_for(std::chrono::milliseconds(ms));
}

// "state=1 refcount=2 try_get=1": the count includes the reference that try_get took.
static void tell(const char* where) {
  bool got = molt_module_try_get(&molt_this_module);
  molt_log(&molt_this_module, "%s enter state=%d refcount=%d try_get=%d", where,
           molt_module_get_state(&molt_this_module), molt_module_refcount(&molt_this_module), got);
  if (got) molt_module_put(&molt_this_module);
}

static int start() {
  tell("init");
  take(init_ms);
  for (int i = 0; i < leak; ++i) molt_module_try_get(&molt_this_module);
  molt_log(&molt_this_module, "init return %d", init_ret.get());
  return init_ret;
}

static void finish() {
  tell("exit");
  take(exit_ms);
  molt_log(&molt_this_module, "exit return");
}

static std::mutex mutex;
static std::condition_variable changed;
static bool stopping;

// The core holds a reference from before this runs until after it has returned.
static void run(void*) {
  molt_log(&molt_this_module, "kthread run refcount=%d", molt_module_refcount(&molt_this_module));
  std::unique_lock lock(mutex);
  changed.wait(lock, [] { return stopping; });
  molt_log(&molt_this_module, "kthread: module_put_and_kthread_exit");
}

static int control(const char* verb) {
  std::string_view what = verb;
  if (what == "thread") return molt_thread_start(&molt_this_module, "om", run, nullptr, 0, nullptr);
  if (what == "stop") {
    std::lock_guard lock(mutex);
    stopping = true;
    changed.notify_all();
    return 0;
  }
  return -EINVAL;
}

MOLT_MODULE(OM_NAME, "1.2", "Apache-2.0", OM_DESCRIPTION)
MOLT_INIT(start)
MOLT_EXIT(finish)
MOLT_HOOK(control_point, control, MOLT_ORDER_NORMAL, MOLT_OPTIONAL)
