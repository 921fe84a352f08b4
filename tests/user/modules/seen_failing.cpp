// Its init fails while somebody reads its parameter: one waits for the other.
#include <molt/module.hpp>

#include <unistd.h>

#include "../points.hpp"

static std::atomic<bool> is_read{false}, has_failed{false};

static int get(const void*, char* text, std::size_t bytes) {
  is_read = true;
  is_read.notify_all();
  has_failed.wait(false);
  // tidy: sleep-ok until the load has come to its end, if it does not wait for this
  usleep(50'000);
  return std::snprintf(text, bytes, "read");
}
MOLT_ITEM_("molt_params")
static const molt_param param = {"slow", "any", "read while init runs", nullptr, get, nullptr,
                                 0,      0};

// Told when its init has failed.
static int told(molt_notifier*, molt_module_state event, molt_module* module) {
  if (event == MOLT_MODULE_STATE_GOING && module == &molt_this_module) {
    has_failed = true;
    has_failed.notify_all();
  }
  return 0;
}
static molt_notifier notifier = {told, 0, 0, &molt_this_module, nullptr};

static int start() {
  molt_notifier_register(&notifier);
  is_read.wait(false);
  return -EIO;
}
static void finish() {}

MOLT_MODULE("seen_failing", "1", "Apache-2.0", "fails while it is looked at")
MOLT_INIT(start)
MOLT_EXIT(finish)
