// The modules of the kernel's own livepatch tests, in their words: one source, built once for each
// (ST_...). What they print and patch follows the recorded logs.
#include <molt/livepatch.hpp>

#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string_view>

#include "control.hpp"

#define SAY(...) molt_log(&molt_this_module, __VA_ARGS__)

#if defined(ST_TARGET) || defined(ST_BUSY)

#ifdef ST_BUSY
MOLT_PARAM(bool, block_transition, false, "sit in busymod_work_func", 0)
static std::mutex mutex;
static std::condition_variable changed;
static bool leave, entered, left;
extern "C" __attribute__((noipa, used)) void busymod_work_func() {
  SAY("busymod_work_func enter");
  std::unique_lock lock(mutex);
  entered = true;
  changed.notify_all();
  if (block_transition) changed.wait(lock, [] { return leave; });
  lock.unlock();
  SAY("busymod_work_func exit");
}
static void run(void*) {
  busymod_work_func();
  std::lock_guard lock(mutex);
  left = true;
  changed.notify_all();
}
static molt_thread* worker;
#endif

static int start() {
  SAY(ST_NAME "_init");
#ifdef ST_BUSY
  if (int error = molt_thread_start(&molt_this_module, "busy", run, nullptr, MOLT_THREAD_STOPPABLE,
                                    &worker)) {
    return error;
  }
  std::unique_lock lock(mutex);
  changed.wait(lock, [] { return block_transition ? entered : left; });
#endif
  return 0;
}
static void finish() { SAY(ST_NAME "_exit"); }
#ifdef ST_BUSY
static int control(const char* verb) {
  if (std::string_view(verb) != "leave") return -EINVAL;
  std::unique_lock lock(mutex);
  leave = true;
  changed.notify_all();
  changed.wait(lock, [] { return left; });
  return 0;
}
MOLT_HOOK(control_point, control, MOLT_ORDER_NORMAL, MOLT_OPTIONAL)
#endif

#else  // a livepatch

MOLT_PARAM(bool, replace, ST_REPLACE, "replace all patches", 0)
#ifdef ST_CALLBACKS
MOLT_PARAM(int, pre_patch_ret, 0, "what pre_patch answers", MOLT_WRITABLE)
#endif

namespace {

[[maybe_unused]] const char* patched_text() { return ST_NAME ": this has been live patched"; }
[[maybe_unused]] void new_busy() { SAY("busymod_work_func enter"), SAY("busymod_work_func exit"); }

#ifdef ST_CALLBACKS
const char* state_of(const molt_patch_target* target) {
  switch (molt_module_get_state(target->module)) {
    case MOLT_MODULE_STATE_LIVE:
      return "[MODULE_STATE_LIVE] Normal state";
    case MOLT_MODULE_STATE_COMING:
      return "[MODULE_STATE_COMING] Full formed, running module_init";
    case MOLT_MODULE_STATE_GOING:
      return "[MODULE_STATE_GOING] Going away";
    default:
      return "[MODULE_STATE_UNFORMED] Still setting it up";
  }
}
void tell(const char* which, const molt_patch_target* target) {
  if (target->object == nullptr) {
    SAY("%s_callback: vmlinux", which);
  } else {
    SAY("%s_callback: %s -> %s", which, target->object, state_of(target));
  }
}
#endif

#ifdef ST_STATE
// What the state is about: a level of the host, here a plain variable.
constexpr unsigned long level_id = 1;
int console_loglevel = 7;
molt_patch_state states[] = {{level_id, ST_STATE, nullptr}, {0, 0, nullptr}};

molt_patch_state* own() { return molt_patch_get_state(&molt_this_module, level_id); }
molt_patch_state* previous() { return molt_patch_get_prev_state(level_id); }

void tell(const char* which, const molt_patch_target*) { SAY("%s_callback: vmlinux", which); }
int before_patching() {
  if (ST_STATE > 1 && previous() != nullptr) {
    SAY("allocate_loglevel_state: space to store console_loglevel already allocated");
    return 0;
  }
  SAY("allocate_loglevel_state: allocating space to store console_loglevel");
  own()->data = std::malloc(sizeof(int));
  return own()->data ? 0 : -ENOMEM;
}
void after_patching() {
  if (molt_patch_state* old = ST_STATE > 1 ? previous() : nullptr) {
    SAY("fix_console_loglevel: taking over the console_loglevel change");
    own()->data = old->data;
    return;
  }
  SAY("fix_console_loglevel: fixing console_loglevel");
  std::memcpy(own()->data, &console_loglevel, sizeof console_loglevel);
  console_loglevel = 15;
}
void before_unpatching() {
  SAY("restore_console_loglevel: restoring console_loglevel");
  std::memcpy(&console_loglevel, own()->data, sizeof console_loglevel);
}
void after_unpatching() {
  SAY("free_loglevel_state: freeing space for the stored console_loglevel");
  std::free(own()->data);
  own()->data = nullptr;
}
#else
[[maybe_unused]] int before_patching() {
#ifdef ST_CALLBACKS
  return pre_patch_ret;
#else
  return 0;
#endif
}
[[maybe_unused]] void after_patching() {}
[[maybe_unused]] void before_unpatching() {}
[[maybe_unused]] void after_unpatching() {}
molt_patch_state states[] = {{0, 0, nullptr}};
#endif

#if defined(ST_CALLBACKS) || defined(ST_STATE)
int pre_patch(const molt_patch_target* target) {
  tell("pre_patch", target);
  return before_patching();
}
void post_patch(const molt_patch_target* target) {
  tell("post_patch", target);
  after_patching();
}
void pre_unpatch(const molt_patch_target* target) {
  tell("pre_unpatch", target);
  before_unpatching();
}
void post_unpatch(const molt_patch_target* target) {
  tell("post_unpatch", target);
  after_unpatching();
}
const molt_patch_callbacks callbacks = {pre_patch, post_patch, pre_unpatch, post_unpatch};
#else
const molt_patch_callbacks callbacks = {};
#endif

const molt_patch_func program_funcs[] = {
#ifdef ST_FUNCTION
    molt::replacement(ST_FUNCTION, patched_text),
#endif
    {nullptr, 0, nullptr, 0, 0}};
[[maybe_unused]] const molt_patch_func no_funcs[] = {{nullptr, 0, nullptr, 0, 0}};
[[maybe_unused]] const molt_patch_func busy_funcs[] = {
    molt::replacement("busymod_work_func", new_busy), {nullptr, 0, nullptr, 0, 0}};

int start() {
  static const molt_patch_object objects[] = {{nullptr, program_funcs, callbacks},
#ifdef ST_OBJECTS
                                              {"test_klp_callbacks_mod", no_funcs, callbacks},
                                              {"test_klp_callbacks_busy", busy_funcs, callbacks},
#endif
                                              {nullptr, nullptr, {}}};
  static molt_patch patch = {sizeof(molt_patch), 0, objects, states};
  patch.flags = replace * MOLT_PATCH_REPLACE;
  return molt_patch_enable(&molt_this_module, &patch);
}
void finish() {}

}  // namespace

MOLT_LIVEPATCH_MODULE
#endif

MOLT_MODULE(ST_NAME, "1.0", "Apache-2.0", "of the kernel's own tests")
MOLT_INIT(start)
MOLT_EXIT(finish)
