// notify.cpp - notifiers of modules coming, going live and going, with a veto at COMING.

#include <algorithm>
#include <cerrno>

#include "base/last_error.hpp"
#include "module/internal.hpp"

namespace molt::module {
namespace {

std::uint64_t g_sequence = 0;

// Runs one notifier without the lock; 0 if it was removed meanwhile.
int run(Lock& lock, const std::shared_ptr<Notifier>& entry, Module& module,
        molt_module_state event) {
  if (entry->removed) return 0;
  ++entry->running;
  lock.unlock();
  CallScope call(entry->owner);
  int result = entry->notifier->notify(entry->notifier, event, module.descriptor);
  lock.lock();
  --entry->running;
  announce_change();
  return result;
}

// The notifiers that this thread is in, the innermost first: one may unregister itself, also from
// within a load that it made.
struct RunningScope;
thread_local const RunningScope* t_running = nullptr;

struct RunningScope {
  const Notifier* const notifier;
  const RunningScope* const outer = t_running;
  explicit RunningScope(const Notifier* now) : notifier(now) { t_running = this; }
  ~RunningScope() { t_running = outer; }
  RunningScope(const RunningScope&) = delete;
  RunningScope& operator=(const RunningScope&) = delete;
};

void wait_until_idle(Lock& lock, const std::shared_ptr<Notifier>& entry) {
  int own = 0;
  for (const RunningScope* scope = t_running; scope != nullptr; scope = scope->outer) {
    own += scope->notifier == entry.get();
  }
  while (entry->running > own) wait_for_change(lock, {}, {});
}

}  // namespace

Status notify(Module& module, molt_module_state event) {
  Lock lock(manager().mutex);
  std::vector<std::shared_ptr<Notifier>> called;
  for (const auto& entry : std::vector(manager().notifiers)) {
    RunningScope scope(entry.get());
    int result = run(lock, entry, module, event);
    if (event != MOLT_MODULE_STATE_COMING || result >= 0) {
      called.push_back(entry);
      continue;
    }
    // A veto: whoever was told of the coming is told that it is off. As in the kernel the state
    // itself changes after that.
    for (const auto& told : called) {
      RunningScope undo(told.get());
      run(lock, told, module, MOLT_MODULE_STATE_GOING);
    }
    module.state = MOLT_MODULE_STATE_GOING;
    announce_change();
    return fail(-result, "%s: a notifier%s%s refused it: %s", module.name.c_str(),
                entry->owner ? " of " : "", entry->owner ? entry->owner->name.c_str() : "",
                errno_name(-result));
  }
  return {};
}

void remove_notifiers_of(Module& module) {
  Lock lock(manager().mutex);
  auto& all = manager().notifiers;
  for (;;) {
    auto at = std::find_if(all.begin(), all.end(),
                           [&](const auto& entry) { return entry->owner == &module; });
    if (at == all.end()) return;
    auto entry = *at;
    all.erase(at);
    entry->removed = true;
    wait_until_idle(lock, entry);
  }
}

bool has_notifiers(const Module& module) {
  const auto& all = manager().notifiers;
  return std::any_of(all.begin(), all.end(),
                     [&](const auto& entry) { return entry->owner == &module; });
}

}  // namespace molt::module

using namespace molt::module;

extern "C" int molt_notifier_register(molt_notifier* notifier) {
  if (notifier == nullptr || notifier->notify == nullptr) {
    return molt::answer(molt::fail(EINVAL, "a notifier without a function"));
  }
  Lock lock(manager().mutex);
  auto& all = manager().notifiers;
  for (const auto& entry : all) {
    if (entry->notifier != notifier) continue;
    return molt::answer(molt::fail(EEXIST, "the notifier is registered already"));
  }
  auto entry = std::make_shared<Notifier>();
  entry->notifier = notifier;
  entry->owner = find_descriptor(notifier->owner);
  entry->sequence = g_sequence++;
  auto before = std::find_if(all.begin(), all.end(), [&](const auto& other) {
    return other->notifier->priority < notifier->priority;
  });
  all.insert(before, std::move(entry));
  return molt::succeed();
}

extern "C" int molt_notifier_unregister(molt_notifier* notifier) {
  Lock lock(manager().mutex);
  auto& all = manager().notifiers;
  auto at = std::find_if(all.begin(), all.end(),
                         [&](const auto& entry) { return entry->notifier == notifier; });
  if (at == all.end()) return molt::answer(molt::fail(ENOENT, "the notifier is not registered"));
  auto entry = *at;
  all.erase(at);
  entry->removed = true;
  wait_until_idle(lock, entry);
  return molt::succeed();
}
