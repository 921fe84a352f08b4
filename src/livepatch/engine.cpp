// engine.cpp - the engine's state, its token, fork, and the C interface.

#include "livepatch/engine.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <utility>

#include "base/last_error.hpp"
#include "base/log.hpp"
#include "base/poison.hpp"
#include "base/program.hpp"
#include "livepatch/internal.hpp"
#include "livepatch/loader_watch.hpp"

namespace molt::livepatch {

// Leaked on purpose: threads may pass gates until the process's last moment.
Engine& engine() {
  static Engine* e = new Engine;
  return *e;
}

void announce() {
  engine().changes.fetch_add(1, std::memory_order_release);
  futex_wake_all(engine().changes);
}

void say(const char* format, ...) {
  char text[900];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  log::line("livepatch", "%s", text);
}

const std::string& display_name(const Object& object) {
  static const std::string* program = new std::string(program_name());
  return object.is_program() ? *program : object.name;
}

bool Patch::has_immediate() const {
  return immediate || std::any_of(objects.begin(), objects.end(), [](const auto& object) {
           return std::any_of(object->funcs.begin(), object->funcs.end(),
                              [](const auto& func) { return func->immediate; });
         });
}

bool Patch::has_libraries() const {
  return std::any_of(objects.begin(), objects.end(),
                     [](const auto& object) { return !object->is_program(); });
}

Patch::~Patch() {
  if (!watched.empty()) watch_no_more(*this);
  if (holds_module) molt_module_put(module);
}

// --- the token ----------------------------------------------------------------------------------------

Token::Token(const void* own_frame) {
  Engine& e = engine();
  Lock lock(e.mutex);
  while (e.token != 0) {
    if (e.token == gettid() || e.guest == gettid()) {
      status_ = fail(EDEADLK, "an operation on patches cannot be started from a patch's callback");
      return;
    }
    ++e.waiting;
    const std::uint32_t seen = e.changes.load(std::memory_order_acquire);
    lock.unlock();
    futex_wait(e.changes, seen);
    lock.lock();
    if (e.waiting > 0) --e.waiting;  // none in the child of a fork from a signal handler
  }
  status_ = e.cut_off.empty() ? operable() : fail(EBUSY, "%s", e.cut_off.c_str());
  if (!status_) return;
  e.token = gettid();
  e.own_frame = own_frame;
  lock.unlock();
  e.step.lock();
  held_ = true;
}

Token::Token(std::try_to_lock_t, const void* own_frame) {
  Engine& e = engine();
  Lock lock(e.mutex);
  if (e.token != 0 || !e.cut_off.empty() || !operable()) return;
  e.token = gettid();
  e.own_frame = own_frame;
  lock.unlock();
  e.step.lock();
  held_ = true;
}

Token::~Token() {
  if (!held_) return;
  Engine& e = engine();
  e.step.unlock();
  {
    Lock lock(e.mutex);
    e.token = 0;
    // Who waits for the end shall find the modules free: the operation's own count is gone by now.
    e.finishing = false;
  }
  announce();
}

Guest::Guest(const void* own_frame) {
  // A thread that does nothing but load and unload is hardly ever seen asleep, or in user mode.
  change_over_self();
  Engine& e = engine();
  const int self = gettid();
  Lock lock(e.mutex);
  for (;;) {
    if (!e.cut_off.empty() || !operable()) return;
    if (e.token == 0 && e.waiting == 0) {
      e.token = self;
      has_token_ = true;
      break;
    }
    const bool may_work_beside = e.in_callback && !e.callback_over && e.guest == 0;
    if (may_work_beside || e.guest == self) break;
    if (e.token == self) return;  // L5 is broken: rather nothing than a deadlock
    const std::uint32_t seen = e.changes.load(std::memory_order_acquire);
    lock.unlock();
    futex_wait(e.changes, seen);
    lock.lock();
  }
  if (!has_token_) guest_before_ = std::exchange(e.guest, self);
  lock.unlock();
  e.step.lock();
  frame_before_ = std::exchange(e.own_frame, own_frame);
  held_ = true;
}

Guest::~Guest() {
  if (!held_) return;
  Engine& e = engine();
  e.own_frame = frame_before_;
  e.step.unlock();
  {
    Lock lock(e.mutex);
    if (has_token_) {
      e.token = 0;
    } else {
      e.guest = guest_before_;
    }
  }
  announce();
}

// --- callbacks ------------------------------------------------------------------------------------------

namespace {

// L2: fork, operations that ask, and guests go on meanwhile.
class CallbackScope {
 public:
  CallbackScope() {
    Engine& e = engine();
    {
      Lock lock(e.mutex);
      is_guests_ = e.guest == gettid();
      if (is_guests_) {
        ++e.guest_callbacks;
      } else {
        e.in_callback = true;
      }
    }
    e.step.unlock();
    announce();
  }
  ~CallbackScope() {
    Engine& e = engine();
    Lock lock(e.mutex);
    if (is_guests_) {
      --e.guest_callbacks;
    } else {
      e.callback_over = true;
      while (e.guest != 0) {
        const std::uint32_t seen = e.changes.load(std::memory_order_acquire);
        lock.unlock();
        futex_wait(e.changes, seen);
        lock.lock();
      }
      e.in_callback = e.callback_over = false;
    }
    lock.unlock();
    e.step.lock();
  }
  CallbackScope(const CallbackScope&) = delete;
  CallbackScope& operator=(const CallbackScope&) = delete;

 private:
  bool is_guests_;
};

molt_patch_target target_of(const Object& object) {
  return {object.is_program() ? nullptr : object.name.c_str(), object.binding.descriptor,
          object.patch->module};
}

template <class Callback>
void call(Object& object, Callback callback) {
  if (callback == nullptr) return;
  const molt_patch_target target = target_of(object);
  CallbackScope scope;
  callback(&target);
}

}  // namespace

int call_pre_patch(Object& object) {
  int result = 0;
  const unsigned life = object.life;
  if (auto callback = object.callbacks.pre_patch) {
    const molt_patch_target target = target_of(object);
    CallbackScope scope;
    result = callback(&target);
  }
  if (object.life == life) {
    object.post_unpatch_due = result == 0;
  } else if (result == 0) {  // what it was called for went meanwhile
    call(object, object.callbacks.post_unpatch);
  }
  return result;
}
void call_post_patch(Object& object) { call(object, object.callbacks.post_patch); }
void call_pre_unpatch(Object& object) { call(object, object.callbacks.pre_unpatch); }
void call_post_unpatch(Object& object) {
  if (!object.post_unpatch_due) return;
  object.post_unpatch_due = false;
  call(object, object.callbacks.post_unpatch);
}

// --- operations -----------------------------------------------------------------------------------------

namespace {

PatchPtr find_patch(std::string_view name) {
  Lock lock(engine().mutex);
  for (const PatchPtr& patch : engine().patches) {
    if (patch->name == name) return patch;
  }
  return nullptr;
}

tl::unexpected<Error> no_patch(std::string_view name) {
  return fail(ENOENT, "no patch %.*s is installed", static_cast<int>(name.size()), name.data());
}

// KERNEL.md P5.1.
void disable(const PatchPtr& patch) {
  say("'%s': initializing unpatching transition", patch->name.c_str());
  init_transition(patch, gate::Side::unpatched);
  for (const auto& object : patch->objects) {
    if (object->patched) call_pre_unpatch(*object);
  }
  start_transition();
}

}  // namespace

Status set_enabled(std::string_view name, bool enabled) {
  Token token(__builtin_frame_address(0));
  if (!token) return token.status();
  PatchPtr patch = find_patch(name);
  if (!patch) return no_patch(name);
  Transition& t = engine().transition;
  if (patch->enabled == enabled) {
    return fail(EINVAL, "patch %s is %s already", patch->name.c_str(),
                enabled ? "enabled" : "disabled");
  }
  if (t.patch == patch) {
    if (Status ok = reverse_transition(); !ok) return ok;
  } else if (enabled) {
    return fail(EINVAL, "patch %s is disabled; unload its module and load it again",
                patch->name.c_str());
  } else if (t.active()) {
    return fail(EBUSY, "patch %s is in transition: %s", t.patch->name.c_str(),
                holders_text(t).c_str());
  } else {
    disable(patch);
  }
  if (t.active()) ensure_worker();
  return {};
}

Status force(std::string_view name) {
  Token token(__builtin_frame_address(0));
  if (!token) return token.status();
  PatchPtr patch = find_patch(name);
  if (!patch) return no_patch(name);
  Transition& t = engine().transition;
  if (t.patch != patch) {
    return fail(EINVAL, "patch %s is not in transition; there is nothing to force",
                patch->name.c_str());
  }
  if (!t.forced) {
    say("forcing remaining tasks to the patched state");
    Lock lock(engine().mutex);
    t.forced = true;
    patch->forced = true;
    engine().worker_hurry.store(true, std::memory_order_release);
  }
  announce();
  ensure_worker();
  return {};
}

Status wait(Deadline deadline, const Cancelled& cancelled) {
  constexpr std::int64_t look_every_ms = 50;
  Engine& e = engine();
  bool tried = false;
  for (;;) {
    change_over_self();
    std::uint32_t seen = e.changes.load(std::memory_order_acquire);
    std::string patch;
    bool has_worker;
    {
      Lock lock(e.mutex);
      if (!e.transition.active()) {
        if (!e.finishing) return {};
      } else {
        patch = e.transition.patch->name;
      }
      has_worker = e.worker;
    }
    if (Status ok = operable(); !ok) return ok;
    // In the child of a fork nobody else works on it.
    if (!has_worker && !tried) {
      Token token(std::try_to_lock, __builtin_frame_address(0));
      if (token && e.transition.active()) {
        tried = true;
        if (!try_complete(true)) ensure_worker();
        continue;
      }
    }
    if (deadline.passed() || (cancelled && cancelled())) {
      Lock lock(e.mutex);
      return fail(deadline.passed() ? ETIMEDOUT : ECANCELED, "patch %s is in transition: %s",
                  patch.c_str(), holders_text(e.transition).c_str());
    }
    futex_wait(e.changes, seen, deadline.sooner(Deadline::in_ms(look_every_ms)));
  }
}

void set_observer(const Observer* observer) {
  Lock lock(engine().mutex);
  engine().observer = observer;
}

void set_delay_release_ms(int ms) {
  Lock lock(engine().mutex);
  engine().delay_release_ms = ms;
}

void owner_failed(molt_module* module, Deadline deadline) {
  PatchPtr patch;
  {
    Lock lock(engine().mutex);
    for (const PatchPtr& p : engine().patches) {
      if (p->module == module) patch = p;
    }
  }
  if (!patch) return;
  const std::string name = patch->name;
  patch.reset();
  // Enabled, or still on the way there: either way it is to go.
  static_cast<void>(set_enabled(name, false));
  if (wait(deadline, {})) return;
  static_cast<void>(force(name));
  static_cast<void>(wait({}, {}));
}

// --- fork ---------------------------------------------------------------------------------------------

namespace {
// Of the thread that forks.
thread_local bool t_took_step = false;
thread_local bool t_has_token = false;
thread_local bool t_is_guest = false;

// In the child: whose callbacks, or steps not begun yet, has it not got?
void forget_other_threads(Engine& e) {
  bool cut = e.token != 0 && !t_has_token && e.in_callback;
  if (e.token != 0) e.token = t_has_token ? gettid() : 0;
  if (!t_has_token) e.in_callback = e.callback_over = false;
  if (e.guest != 0 && t_is_guest) {
    e.guest = gettid();
  } else if (e.guest != 0) {
    cut = cut || e.guest_callbacks != 0;
    e.guest = 0;
    e.guest_callbacks = 0;
  }
  if (cut) {
    e.cut_off =
        "a fork cut off an operation on patches, in a callback of another thread; this "
        "process keeps its patches as they are";
  }
}
}  // namespace

void before_fork() {
  Engine& e = engine();
  {
    Lock lock(e.mutex);
    t_has_token = e.token != 0 && e.token == gettid();
    t_is_guest = e.guest != 0 && e.guest == gettid();
  }
  // Who has the token is in a callback: nothing else of the engine forks. It does not hold the step.
  e.step.lock();
  t_took_step = true;
  e.mutex.lock();
  shadow_before_fork();
}

void after_fork(bool child) {
  Engine& e = engine();
  shadow_after_fork();
  if (child) {
    gate::after_fork_child();
    e.worker = false;
    e.worker_tid = 0;
    e.waiting = 0;
    e.finishing = false;
    forget_other_threads(e);
  }
  e.mutex.unlock();
  if (t_took_step) e.step.unlock();
  t_took_step = false;
}

}  // namespace molt::livepatch

// --- C interface ----------------------------------------------------------------------------------------

using namespace molt;

extern "C" int molt_patch_enable(molt_module* owner, const molt_patch* patch) {
  return answer(livepatch::enable(owner, patch));
}

extern "C" int molt_patch_wait(int timeout_ms) {
  return answer(livepatch::wait(Deadline::in_ms(timeout_ms), {}));
}

extern "C" int molt_patch_set_enabled(const char* name, int enabled) {
  return answer(livepatch::set_enabled(name ? name : "", enabled != 0));
}

extern "C" int molt_patch_force(const char* name) {
  return answer(livepatch::force(name ? name : ""));
}

extern "C" int molt_patch_thread_state(int tid) {
  auto state = livepatch::thread_state(tid);
  return state ? *state : answer(state.error());
}

extern "C" void molt_patch_set_poke(void (*poke)(int tid)) {
  livepatch::Lock lock(livepatch::engine().mutex);
  livepatch::engine().poke = poke;
}
