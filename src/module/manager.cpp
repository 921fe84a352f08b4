// manager.cpp - the list of modules, waiting for changes of it, references, and what it shows.

#include "module/manager.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "base/last_error.hpp"
#include "base/poison.hpp"
#include "module/internal.hpp"

namespace molt::module {

// Leaked on purpose: the host's static destructors may still ask.
Manager& manager() {
  static Manager* m = new Manager;
  return *m;
}

std::string taint_text(unsigned taint) {
  std::string text;
  if (taint & taint_proprietary) text += 'P';
  if (taint & taint_forced) text += 'F';
  if (taint & taint_resident) text += 'R';
  if (taint & taint_livepatch) text += 'K';
  return text;
}

const char* state_text(molt_module_state state) {
  switch (state) {
    case MOLT_MODULE_STATE_LIVE:
      return "live";
    case MOLT_MODULE_STATE_COMING:
      return "coming";
    case MOLT_MODULE_STATE_GOING:
      return "going";
    case MOLT_MODULE_STATE_UNFORMED:
      break;
  }
  return "unformed";
}

const char* to_text(Fate fate) {
  switch (fate) {
    case Fate::unmapped:
      return "unmapped";
    case Fate::resident:
      return "resident";
    case Fate::quarantined:
      return "quarantined";
    case Fate::pinned:
      break;
  }
  return "pinned";
}

bool wait_for_change(Lock& lock, Deadline deadline, const Cancelled& cancelled) {
  // A request can be cancelled without a word to wake us: look now and then.
  constexpr std::int64_t look_every_ms = 50;
  std::uint32_t seen = manager().changes.load(std::memory_order_acquire);
  lock.unlock();
  bool go_on = !deadline.passed() && !(cancelled && cancelled());
  if (go_on) {
    Deadline until = cancelled ? deadline.sooner(Deadline::in_ms(look_every_ms)) : deadline;
    futex_wait(manager().changes, seen, until);
  }
  lock.lock();
  return go_on;
}

void announce_change() {
  manager().changes.fetch_add(1, std::memory_order_release);
  futex_wake_all(manager().changes);
}

// Several versions of one name may be left: each has its place in the tree, resident/NAME,N.
ModulePtr find_resident(std::string_view name) {
  for (const ModulePtr& module : manager().residents) {
    if (module->name == name || module->name + "," + std::to_string(module->id) == name) {
      return module;
    }
  }
  return nullptr;
}

ModulePtr find(std::string_view name, bool unformed) {
  for (const ModulePtr& module : manager().modules) {
    if (module->name == name && (unformed || module->state != MOLT_MODULE_STATE_UNFORMED)) {
      return module;
    }
  }
  return nullptr;
}

Module* find_descriptor(const molt_module* descriptor) {
  return descriptor && descriptor->core ? descriptor->core->module : nullptr;
}

OperationScope::OperationScope(std::string what) {
  Lock lock(manager().mutex);
  manager().operations.push_back(std::move(what));
  at_ = std::prev(manager().operations.end());
}
OperationScope::~OperationScope() {
  Lock lock(manager().mutex);
  manager().operations.erase(at_);
  announce_change();
}

InsideScope::InsideScope(Lock&, Module& module, bool looks) : module_(module), looks_(looks) {
  ++module.inside;
  module.looking += looks;
}
InsideScope::~InsideScope() {
  Lock lock(manager().mutex);
  --module_.inside;
  module_.looking -= looks_;
  announce_change();
}

ParametersScope::ParametersScope(Lock& lock, Module& module)
    : module_(module), mine_(module.parameters_by != gettid()) {
  if (!mine_) return;
  while (module.parameters_by != 0) wait_for_change(lock, {}, {});
  module.parameters_by = gettid();
}
ParametersScope::~ParametersScope() {
  if (!mine_) return;
  Lock lock(manager().mutex);
  module_.parameters_by = 0;
  announce_change();
}

namespace {
thread_local const CallScope* t_call = nullptr;
}  // namespace

CallScope::CallScope(const Module* module) : module_(module), outer_(t_call) { t_call = this; }
CallScope::~CallScope() { t_call = outer_; }

bool called_by_core(const Module& module) {
  for (const CallScope* call = t_call; call != nullptr; call = call->outer_) {
    if (call->module_ == &module) return true;
  }
  return false;
}

bool self_inside(const Module& module) {
  return hooks::self_inside(module.owner) || thread_owner() == &module || called_by_core(module);
}

Status operations_open(const Lock&) {
  Manager& m = manager();
  if (Status ok = operable(); !ok) return ok;
  if (m.locked) {
    return fail(EPERM, "loading and unloading are locked in this process until it restarts");
  }
  if (m.closed) {
    return fail(EBUSY, "Molt is leaving this process; attach again when it has gone");
  }
  return {};
}

Result<bool> close_if_empty(bool dry_run) {
  Lock lock(manager().mutex);
  Manager& m = manager();
  if (m.closed) return false;
  if (Status ok = operable(); !ok) return pass(ok);
  const auto names = [](const auto& modules) {
    std::string text;
    for (const ModulePtr& module : modules) text += (text.empty() ? "" : ", ") + module->name;
    return text;
  };
  if (!m.modules.empty()) {
    return fail(EBUSY, "modules are loaded: %s; `molt unload` them first",
                names(m.modules).c_str());
  }
  if (!m.residents.empty()) {
    return fail(EBUSY, "unloaded modules are still in memory: %s; `molt gc` tells why",
                names(m.residents).c_str());
  }
  if (!m.operations.empty()) {
    return fail(EBUSY, "an operation is under way: %s; `molt wait` for its end",
                m.operations.front().c_str());
  }
  if (!dry_run) m.closed = true;
  return true;
}

void open_again() {
  Lock lock(manager().mutex);
  manager().closed = false;
}

Status operations_allowed() {
  Lock lock(manager().mutex);
  if (Status ok = operations_open(lock); !ok) return ok;
  return memory_available();
}

std::string poisoned() { return molt::poisoned(); }

std::string last_unloaded() {
  Lock lock(manager().mutex);
  return manager().last_unloaded;
}

void lock_loading() {
  Lock lock(manager().mutex);
  manager().locked = true;
}
bool loading_locked() {
  Lock lock(manager().mutex);
  return manager().locked;
}

std::string process_taint() {
  Lock lock(manager().mutex);
  unsigned taint = manager().taint;
  return taint_text(taint);
}

void set_observer(const Observer* observer) {
  Lock lock(manager().mutex);
  manager().observer = observer;
}

namespace {
const Observer* current_observer() {
  Lock lock(manager().mutex);
  return manager().observer;
}
}  // namespace

void warn(Module& module, const char* format, ...) {
  char text[900];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  log::line(module.name, "%s", text);
  module.warnings.push_back(text);
}

void tell_formed(Module& module) {
  if (const Observer* observer = current_observer()) observer->formed(module.name);
  module.formed = true;
}

void tell_gone(Module& module) {
  if (!module.formed) return;
  module.formed = false;
  if (const Observer* observer = current_observer()) observer->gone(module.name);
}

void set_patch_hooks(const PatchHooks* hooks) {
  Lock lock(manager().mutex);
  manager().patch_hooks = hooks;
}

namespace {
const PatchHooks* current_patch_hooks() {
  Lock lock(manager().mutex);
  return manager().patch_hooks;
}
}  // namespace

Status patch_coming(Module& module) {
  const PatchHooks* hooks = current_patch_hooks();
  return hooks ? hooks->coming(module.descriptor, module.livepatch) : Status();
}

void patch_going(Module& module) {
  const PatchHooks* hooks = current_patch_hooks();
  if (hooks == nullptr) return;
  threads::RangeSet ways_in;
  hooks->going(module.descriptor, ways_in);
  Lock lock(manager().mutex);
  module.ways_in = ways_in;
}

const void* patch_record(const Module& module) {
  const PatchHooks* hooks = current_patch_hooks();
  return hooks ? hooks->record(module.descriptor) : nullptr;
}

void patch_failed(Module& module) {
  if (const PatchHooks* hooks = current_patch_hooks()) hooks->failed(module.descriptor);
}

void set_directory(std::string path) {
  Lock lock(manager().mutex);
  manager().directory = std::move(path);
}

namespace {
std::string operations_text(const Lock&) {
  std::string text;
  for (const std::string& o : manager().operations) {
    if (!text.empty()) text += ", ";
    text += o;
  }
  return text;
}
}  // namespace

std::string operation() {
  Lock lock(manager().mutex);
  return operations_text(lock);
}

Status removable(const Module& module, bool resident) {
  if (!module.users.empty()) {
    std::string users;
    for (const Module* user : module.users) {
      if (!users.empty()) users += ",";
      users += user->name;
      if (user->leaving) users += " (left in memory)";
    }
    return fail(EAGAIN, "%s is used by %s; unload that first", module.name.c_str(), users.c_str());
  }
  if (module.state != MOLT_MODULE_STATE_LIVE) {
    return fail(EBUSY, "%s is %s; wait until it is live", module.name.c_str(),
                state_text(module.state));
  }
  if (module.busy != nullptr) {
    return fail(EBUSY, "%s: %s is under way", module.name.c_str(), module.busy);
  }
  if (resident) return {};
  if (module.permanent) {
    return fail(EBUSY, "%s has init but no exit: it is permanent; --resident frees its name",
                module.name.c_str());
  }
  int references = module.reported_refcnt() - stoppable_threads(module);
  if (references > 0) {
    std::string threads = thread_names(module);
    const bool all_by_threads = thread_count(module) == module.reported_refcnt();
    return fail(
        EAGAIN,
        "%s is in use: %d reference%s held%s%s; try again later, or go on in the background "
        "(--lazy)",
        module.name.c_str(), references, references == 1 ? "" : "s",
        threads.empty()  ? ""
        : all_by_threads ? " by its threads: "
                         : ", by its threads too: ",
        threads.c_str());
  }
  return {};
}

Status set_enabled(std::string_view name, bool enabled) {
  if (Status ok = operations_allowed(); !ok) return ok;
  ModulePtr module;
  {
    Lock lock(manager().mutex);
    module = find(name);
    if (!module) {
      return fail(ENOENT, "no module %.*s", static_cast<int>(name.size()), name.data());
    }
    if (module->state != MOLT_MODULE_STATE_LIVE || module->busy != nullptr) {
      return fail(EBUSY, "%s is %s; try again", module->name.c_str(),
                  module->busy ? module->busy : state_text(module->state));
    }
    if (module->enabled == enabled) {
      return fail(EINVAL, "%s is %s already", module->name.c_str(),
                  enabled ? "enabled" : "disabled");
    }
    module->busy = enabled ? "enable" : "disable";
  }
  Status changed =
      enabled ? hooks::change(nullptr, module->owner) : hooks::change(module->owner, nullptr);
  {
    Lock lock(manager().mutex);
    module->busy = nullptr;
    if (changed) module->enabled = enabled;
    announce_change();
  }
  if (changed) log::line(module->name, enabled ? "enabled" : "disabled");
  return changed;
}

Status wait(std::string_view name, Until until, Deadline deadline, const Cancelled& cancelled) {
  Lock lock(manager().mutex);
  for (;;) {
    bool reached;
    if (name.empty()) {
      reached = manager().operations.empty();
    } else {
      ModulePtr module = find(name, true);
      if (until == Until::live) {
        reached = module && module->state == MOLT_MODULE_STATE_LIVE;
      } else {
        reached = module == nullptr;
        if (until == Until::freed) {
          for (const ModulePtr& r : manager().residents) reached &= r->name != name;
        }
      }
    }
    if (reached) return {};
    if (!wait_for_change(lock, deadline, cancelled)) {
      const std::string what(name);
      const int code = deadline.passed() ? ETIMEDOUT : ECANCELED;
      if (name.empty()) {
        return fail(code, "gave up waiting for the end of operations: %s",
                    operations_text(lock).c_str());
      }
      const char* wanted = until == Until::live   ? "live"
                           : until == Until::gone ? "gone"
                                                  : "out of memory";
      return fail(code,
                  "gave up waiting until %s is %s; `molt list` shows what it is, `molt blocking` "
                  "what it waits for",
                  what.c_str(), wanted);
    }
  }
}

// --- what it shows ------------------------------------------------------------------------------

namespace {

ModuleInfo info_of(const Module& module) {
  ModuleInfo info;
  info.name = module.name;
  info.version = module.version;
  info.taint = taint_text(module.taint);
  info.size = module.size;
  info.address = module.address;
  info.refcount = module.reported_refcnt();
  for (const Module* user : module.users) info.holders.push_back(user->name);
  info.state = module.state;
  info.enabled = module.enabled;
  info.permanent = module.permanent;
  return info;
}

}  // namespace

std::vector<ModuleInfo> list() {
  Lock lock(manager().mutex);
  std::vector<ModuleInfo> out;
  for (const ModulePtr& module : manager().modules) {
    if (module->state != MOLT_MODULE_STATE_UNFORMED) out.push_back(info_of(*module));
  }
  return out;
}

std::string proc_line(const ModuleInfo& module) {
  std::string users;
  for (const std::string& holder : module.holders) users += holder + ",";
  if (module.permanent) users += "[permanent],";
  if (users.empty()) users = "-";
  const char* state = module.state == MOLT_MODULE_STATE_LIVE     ? "Live"
                      : module.state == MOLT_MODULE_STATE_COMING ? "Loading"
                                                                 : "Unloading";
  // The kernel shows the mark also for a module without taints.
  std::string marks = module.taint;
  if (module.state == MOLT_MODULE_STATE_COMING) marks += '+';
  if (module.state == MOLT_MODULE_STATE_GOING) marks += '-';
  if (!marks.empty()) marks = " (" + marks + ")";
  char line[512];
  std::snprintf(line, sizeof line, "%s %llu %d %s %s 0x%016llx%s", module.name.c_str(),
                static_cast<unsigned long long>(module.size), module.refcount, users.c_str(), state,
                static_cast<unsigned long long>(module.address), marks.c_str());
  return line;
}

Result<ModuleDetail> info(std::string_view name, bool values) {
  Lock lock(manager().mutex);
  ModulePtr module = find(name);
  if (!module) return fail(ENOENT, "no module %.*s", static_cast<int>(name.size()), name.data());
  ModuleDetail detail;
  detail.module = info_of(*module);
  detail.description = module->description;
  detail.license = module->license;
  detail.srcversion = module->srcversion;
  detail.path = module->path;
  detail.store = module->stored.path;
  detail.imports = module->imports;
  detail.requests = module->requests;
  detail.hazards = module->hazards;
  detail.hazards.insert(detail.hazards.end(), module->effects.begin(), module->effects.end());
  detail.exceptions = module->exceptions.load(std::memory_order_relaxed);
  if (module->state == MOLT_MODULE_STATE_GOING) return detail;

  InsideScope inside(lock, *module);
  ParametersScope parameters(lock, *module);
  lock.unlock();
  CallScope call(module.get());
  const molt_module& d = *module->descriptor;
  if (d.state != nullptr) detail.state_version = d.state->version;
  for (const molt_export* e = d.exports; e != d.exports_end; ++e) {
    detail.exports.push_back(std::string(e->name) + " " + e->signature);
  }
  for (const molt_callback* c = d.callbacks; c != d.callbacks_end; ++c) {
    detail.callbacks.push_back({c->hook, c->order});
  }
  for (const molt_param* p = d.params; p != d.params_end; ++p) {
    ParamInfo param{p->name, p->type, "", p->description, (p->flags & MOLT_WRITABLE) != 0};
    if (values && parameters && p->get != nullptr) {
      char text[1024];
      if (p->get(p->value, text, sizeof text) >= 0) param.value = text;
    }
    detail.parameters.push_back(std::move(param));
  }
  return detail;
}

std::vector<ResidentInfo> residents() {
  Lock lock(manager().mutex);
  std::vector<ResidentInfo> out;
  for (const ModulePtr& m : manager().residents) {
    out.push_back({m->name, m->version, m->reason, m->size, m->id, m->pinned});
  }
  return out;
}

void callback_threw(const molt_callback* callback, const char* what, bool fail_closed) {
  auto at = reinterpret_cast<std::uint64_t>(callback);
  std::string name;
  {
    Lock lock(manager().mutex);
    for (const ModulePtr& module : manager().modules) {
      if (at < module->address || at - module->address >= module->size) continue;
      module->exceptions.fetch_add(1, std::memory_order_relaxed);
      name = module->name;
    }
  }
  log::line(name, "callback of hook %s threw %s; it counts as %s", callback->hook,
            what ? what : "an unknown exception", fail_closed ? "a refusal" : "no opinion");
}

// --- fork ---------------------------------------------------------------------------------------

void before_fork() { manager().mutex.lock(); }

void after_fork(bool child) {
  Manager& m = manager();
  if (child) {
    // Operations of threads that the child does not have will never end.
    for (const ModulePtr& module : m.modules) {
      if (module->state != MOLT_MODULE_STATE_LIVE || module->busy != nullptr) {
        module->busy = "an operation that fork cut off";
      }
      module->inside = module->looking = 0;
      module->wanted = false;
      module->parameters_by = 0;
    }
    m.flights.clear();
    m.waiting.clear();
    m.operations.clear();
    m.closed = false;
    for (auto& notifier : m.notifiers) notifier->running = 0;
    forget_threads_after_fork();
    reaper_after_fork();
  }
  m.mutex.unlock();
}

}  // namespace molt::module

// --- references (C ABI) -------------------------------------------------------------------------

using namespace molt::module;

extern "C" bool molt_module_try_get(molt_module* descriptor) {
  if (descriptor == nullptr) return true;
  Lock lock(manager().mutex);
  Module* module = find_descriptor(descriptor);
  if (module == nullptr || module->state == MOLT_MODULE_STATE_GOING ||
      module->state == MOLT_MODULE_STATE_UNFORMED || module->refcnt <= 0) {
    return false;
  }
  ++module->refcnt;
  return true;
}

extern "C" void molt_module_get(molt_module* descriptor) {
  if (descriptor == nullptr) return;
  Lock lock(manager().mutex);
  if (Module* module = find_descriptor(descriptor)) ++module->refcnt;
}

extern "C" int molt_module_put(molt_module* descriptor) {
  if (descriptor == nullptr) return molt::succeed();
  Lock lock(manager().mutex);
  Module* module = find_descriptor(descriptor);
  if (module == nullptr) return answer(molt::fail(EINVAL, "no module that is loaded"));
  // The init reference and those of dependants are the core's own, not a caller's to put.
  int kept =
      (module->state == MOLT_MODULE_STATE_COMING ? 1 : 0) + static_cast<int>(module->users.size());
  if (module->references() <= kept) {
    molt::log::line(module->name, "reference count underflow refused");
    return answer(
        molt::fail(EINVAL, "%s: a reference was put that nobody holds", module->name.c_str()));
  }
  --module->refcnt;
  announce_change();
  return molt::succeed();
}

extern "C" int molt_module_refcount(const molt_module* descriptor) {
  Lock lock(manager().mutex);
  Module* module = find_descriptor(descriptor);
  return module ? module->reported_refcnt() : -1;
}

extern "C" int molt_module_get_state(const molt_module* descriptor) {
  Lock lock(manager().mutex);
  Module* module = find_descriptor(descriptor);
  return module ? module->state : MOLT_MODULE_STATE_UNFORMED;
}

extern "C" molt_module* molt_module_find_get(const char* name) {
  Lock lock(manager().mutex);
  ModulePtr module = find(name ? name : "");
  if (!module || module->state != MOLT_MODULE_STATE_LIVE) return nullptr;
  ++module->refcnt;
  return module->descriptor;
}
