// Answers with its argument, and not before it may; how its init ends is asked for.
#include <molt/module.hpp>

#include <stdexcept>

#include "../points.hpp"

static std::atomic<bool> is_open{true};

static int set_open(void*, const char* text) {
  is_open = text[0] == '1';
  is_open.notify_all();
  return 0;
}
MOLT_ITEM_("molt_params")
static const molt_param open_param = {
    "open", "any", "whether calls get an answer", set_open, nullptr, nullptr, MOLT_WRITABLE, 0};
MOLT_PARAM(int, answer, 0, "what init answers", 0)
MOLT_PARAM(bool, throws, false, "whether init throws", 0)

static int ask(int number) {
  is_open.wait(false);
  return number;
}

static int save(molt::state_writer out) {
  molt_log(&molt_this_module, "saves");
  is_open.wait(false);
  return out.put(1);
}
static int restore(molt::state_reader in) {
  int one;
  return in.get(one);
}

static int start() {
  if (throws) throw std::runtime_error("no luck today");
  return answer;
}
static void finish() {}

MOLT_MODULE(NAME, "1", "Apache-2.0", "takes its time")
MOLT_HOOK(ask_point, ask)
MOLT_STATE(1, 1, save, restore)
MOLT_INIT(start)
MOLT_EXIT(finish)
