// unload.cpp - taking a module down, in the order of KERNEL.md M1.6, and proving that it is gone.
//
//   disable -> drain -> threads -> exit -> GOING notifiers -> objects -> residency proof over the
//   text -> pointer audit -> dlclose -> proof that it is unmapped -> references on providers
//
// Under a sanitizer quarantine.cpp takes the place of the last but one.
//
// Until exit() everything can be taken back. After it, what cannot be proven leaves the module
// resident, under no name, and gc() tries again. Its providers stay as long as its code does: a
// thread that is still in it may call them.

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>

#include "base/poison.hpp"
#include "elf/loaded.hpp"
#include "interpose/functions.hpp"
#include "module/internal.hpp"

namespace molt::module {
namespace {

constexpr int default_drain_ms = 10'000;
constexpr int look_patience_ms = 10'000;

// Whether the dynamic loader or the kernel still knows the object, by all three means; empty: no.
std::string still_there(const Module& module) {
  // An object that was kept for a thread's destructors goes at the first dlclose() after them: so
  // the question itself may free it, and is asked again.
  for (int i = 0; i < 2; ++i) {
    void* handle = dlopen(module.stored.path.c_str(), RTLD_NOW | RTLD_NOLOAD);
    if (handle == nullptr) break;
    dlclose(handle);
    if (i == 1) return "the dynamic loader keeps it (dlclose answered 0)";
  }
  if (elf::in_link_map(module.stored.path)) return "it is still in the list of loaded objects";
  const elf::Range extent{module.address, module.address + module.size};
  if (!module.mapping || elf::mapped(*module.mapping, extent))
    return "it is still in /proc/self/maps, or that cannot be read";
  return "";
}

}  // namespace

std::string name_them(const std::vector<hooks::Inside>& inside) {
  std::string text;
  std::size_t shown = 0;
  for (const hooks::Inside& i : inside) {
    if (shown++ == 4) {
      text += " and " + std::to_string(inside.size() - 4) + " more";
      break;
    }
    if (!text.empty()) text += ", ";
    if (i.tid == 0) {
      text += "an asynchronous callback";
      continue;
    }
    text += "thread " + std::to_string(i.tid) + " (" + i.thread + ")";
    if (!i.hook.empty()) text += " in hook " + i.hook;
  }
  return text.empty() ? "a call of the core" : text;
}

bool drain(Module& module, Deadline deadline, const Cancelled& cancelled,
           std::vector<hooks::Inside>& inside) {
  return hooks::drain(module.owner, deadline, cancelled, inside) &&
         await_core_calls(module, deadline, cancelled);
}

bool await_core_calls(Module& module, Deadline deadline, const Cancelled& cancelled) {
  Lock lock(manager().mutex);
  while (module.inside > module.looking) {
    if (!wait_for_change(lock, deadline, cancelled)) return false;
  }
  return true;
}

void call_exit(Module& module) {
  if (module.descriptor->exit != nullptr) module.descriptor->exit();
}

void take_down(Module& module) {
  remove_notifiers_of(module);
  remove_offers_of(module);
}

void drop_providers(Module& module) {
  Lock lock(manager().mutex);
  for (const ModulePtr& provider : module.providers) {
    --provider->refcnt;
    auto& users = provider->users;
    users.erase(std::remove(users.begin(), users.end(), &module), users.end());
  }
  module.providers.clear();
  announce_change();
}

namespace {

Fate free_memory(const ModulePtr& module, std::string& reason) {
  if (Status ok = operable(); !ok) {
    reason = ok.error().detail;
    return module->pinned ? Fate::pinned : Fate::resident;
  }
  if (!module->pinned && quarantine(*module)) {
    module->descriptor = nullptr;
    drop_providers(*module);
    return Fate::quarantined;
  }
  if (module->linked) {
    module->descriptor = nullptr;
    module->linked.reset();
    drop_providers(*module);
    return Fate::unmapped;
  }
  if (module->handle != nullptr) {
    module->descriptor = nullptr;
    dlclose(module->handle);
    module->handle = nullptr;
  }
  reason = still_there(*module);
  if (reason.empty()) {
    store_forget(module->stored);
    drop_providers(*module);
    return Fate::unmapped;
  }
  if (!module->hazards.empty()) reason += ": " + module->hazards.front();
  return Fate::pinned;
}

void keep_resident(const ModulePtr& module, bool pinned, std::string reason) {
  log::line(module->name, "%s: %s", pinned ? "pinned" : "resident", reason.c_str());
  Lock lock(manager().mutex);
  module->pinned = pinned;
  module->reason = std::move(reason);
  manager().taint |= taint_resident;
  manager().residents.push_back(module);
  announce_change();
}

}  // namespace

std::string cannot_free(const Module& module) {
  if (Status ok = operable(); !ok) return ok.error().detail;
  if (module.owner != nullptr && hooks::entered(module.owner)) return "a thread is inside it";
  Lock lock(manager().mutex);
  if (module.inside > module.looking) return "the core is inside it";
  if (int threads = thread_count(module)) {
    return std::to_string(threads) + " of its threads run";
  }
  if (int references = module.references()) {
    return std::to_string(references) + " reference" + (references == 1 ? "" : "s") + " held";
  }
  return "";
}

namespace {

// What somebody is about to forget anyway is not worth a resident module: another thread of the
// runtime that looks at mappings, say.
std::string lasting_pointers(Module& module, Deadline deadline) {
  constexpr int longest_ms = 100;
  const Deadline until = deadline.sooner(Deadline::in_ms(longest_ms));
  for (long pause_ns = 1'000'000;; pause_ns *= 2) {
    std::string pointers = pointers_left(module, true);
    if (pointers.empty() || until.passed()) return pointers;
    const timespec pause{0, pause_ns};
    nanosleep(&pause, nullptr);
  }
}

// While it exists no look at the module begins (residency.cpp), so those under way can be waited for: one takes a
// tenth of a second, and on a busy machine as long as whoever unwinds waits between two of them.
class NoNewLooks {
 public:
  explicit NoNewLooks(Module& module) : module_(module) { set(true); }
  ~NoNewLooks() { set(false); }
  NoNewLooks(const NoNewLooks&) = delete;
  NoNewLooks& operator=(const NoNewLooks&) = delete;

 private:
  void set(bool wanted) {
    Lock lock(manager().mutex);
    module_.wanted = wanted;
  }
  Module& module_;
};

// Changes what a look at the module goes by, when no look is under way. False: one takes so long that somebody
// else shall try again.
template <class Change>
bool when_nobody_looks(Module& module, const Change& change) {
#ifdef MOLT_MUTATE_FREE_UNDER_LOOKS
  constexpr bool waits = false;
#else
  constexpr bool waits = true;
#endif
  const Deadline deadline = Deadline::in_ms(look_patience_ms);
  const NoNewLooks none(module);
  Lock lock(manager().mutex);
  while (waits && module.inside != 0) {
    if (!wait_for_change(lock, deadline, {})) return false;
  }
  change();
  return true;
}

// Frees the memory as far as that can be proven safe. exit() has run, or there is none to run. With
// `all`, looks for pointers also if threads are in the way, so that every reason has a name.
Fate try_free(const ModulePtr& module, const Patience& patience, bool all, std::string& reason) {
  await_core_calls(*module, patience.deadline, patience.cancelled);
  reason = cannot_free(*module);
  if (!reason.empty()) return Fate::resident;
  hooks::Owner* owner = nullptr;
  reason = "the core looks at it";
  if (!when_nobody_looks(*module, [&] { std::swap(owner, module->owner); })) return Fate::resident;
  if (owner != nullptr) {
    hooks::destroy(owner);
    interpose::release_unused();
  }
  reason = threads_left(*module, patience.deadline, patience.cancelled);
  if (reason.empty() || all) {
    const std::string pointers =
        lasting_pointers(*module, all ? patience.deadline : Deadline::in_ms(0));
    if (!reason.empty() && !pointers.empty()) reason += "; ";
    reason += pointers;
  }
  if (!reason.empty()) return Fate::resident;
  reason = "the core looks at it";
  if (!when_nobody_looks(*module, [&] { module->freeing = true; })) return Fate::resident;
  return free_memory(module, reason);
}

}  // namespace

Fate dispose(const ModulePtr& module, const Patience& patience, std::string& reason) {
  Fate fate = try_free(module, patience, true, reason);
  if (!is_gone(fate)) keep_resident(module, fate == Fate::pinned, reason);
  return fate;
}

Fate go(const ModulePtr& module, bool with_exit, bool resident, const Patience& patience,
        std::string& reason) {
  if (with_exit) call_exit(*module);
  notify(*module, MOLT_MODULE_STATE_GOING);
  patch_going(*module);
  tell_gone(*module);
  take_down(*module);
  {
    Lock lock(manager().mutex);
    module->state = MOLT_MODULE_STATE_UNFORMED;
    module->leaving = true;
    announce_change();
  }
  if (resident) {
    reason =
        with_exit || module->permanent ? "asked for" : "a thread was inside; exit() waits for it";
    std::string why = cannot_free(*module);
    if (!why.empty()) reason += "; " + why;
    module->exit_pending = !with_exit && !module->permanent;
    keep_resident(module, false, reason);
    return Fate::resident;
  }
  return dispose(module, patience, reason);
}

Result<UnloadReport> unload(const UnloadRequest& request) {
  if (Status ok = operations_allowed(); !ok) return pass(ok);
  if (request.name.empty() || request.name.size() > MOLT_NAME_MAX) {
    return fail(ENOENT, "'%.60s' is no module name", request.name.c_str());
  }
  OperationScope scope("unload " + request.name);
  const int patience_ms = request.timeout_ms >= 0 ? request.timeout_ms
                          : request.lazy          ? 0
                                                  : default_drain_ms;
  Deadline deadline = Deadline::in_ms(patience_ms);
  UnloadReport report;
  report.name = request.name;

  // 1. May it go? From GOING on no reference can be taken.
  ModulePtr module;
  bool enabled;
  {
    Lock lock(manager().mutex);
    module = find(request.name);
    if (!module) return fail(ENOENT, "no module %s is loaded", request.name.c_str());
    if (Status ok = removable(*module, request.resident || request.lazy); !ok) return pass(ok);
    if (request.lazy && module->permanent) {
      return fail(EBUSY, "%s has init but no exit: it is permanent; --resident frees its name",
                  module->name.c_str());
    }
    if (self_inside(*module)) {
      return fail(EDEADLK, "%s: a module cannot unload itself from code of its own",
                  module->name.c_str());
    }
    if (request.dry_run) {
      if (request.resident) {
        report.fate = Fate::resident;
        return report;
      }
      InsideScope looking(lock, *module);
      lock.unlock();
      if (const auto inside = hooks::who_is_inside(module->owner); !inside.empty()) {
        report.reason = name_them(inside);
      }
      return report;
    }
    enabled = module->enabled;
    module->ignore_pointers = request.ignore_pointers;
    module->state = MOLT_MODULE_STATE_GOING;
    // Forced out while referenced, it keeps the base, as in the kernel: the count stays positive.
    if (module->references() - stoppable_threads(*module) <= 0) module->drop_base();
    announce_change();
  }

  // 2. Nobody new enters; those inside finish, or it is live again.
  std::int64_t from = now_ns();
  if (enabled) {
    if (Status ok = hooks::change(module->owner, nullptr); !ok) hooks::revoke(module->owner);
  }
  std::vector<hooks::Inside> inside;
  bool empty = drain(*module, deadline, request.cancelled, inside);
  report.drain_us = (now_ns() - from) / 1000;
  bool stopped = empty && stop_threads(*module, deadline, request.cancelled);
  if (!stopped && !request.resident && !request.lazy) {
    if (enabled) {
      if (Status ok = hooks::change(nullptr, module->owner); !ok) {
        log::line(module->name, "stays disabled: %s", ok.error().detail);
        enabled = false;
      }
    }
    Lock lock(manager().mutex);
    module->state = MOLT_MODULE_STATE_LIVE;
    module->enabled = enabled;
    module->take_base();
    announce_change();
    std::string who = empty ? "its threads to stop: " + thread_names(*module) : name_them(inside);
    return fail(
        request.cancelled && request.cancelled() ? ECANCELED : ETIMEDOUT,
        "%s: gave up waiting for %s; it is live again; wait longer (--timeout), or go on in the "
        "background (--lazy)",
        module->name.c_str(), who.c_str());
  }

  // 3. The end.
  bool with_exit = !module->permanent && empty;
  if (request.lazy) {
    module->lazy = true;
    // Its exit() shall find what an unload guarantees it: nobody inside, and no reference.
    with_exit = stopped && cannot_free(*module).empty();
  }
  report.fate = go(module, with_exit, request.resident || (request.lazy && !with_exit),
                   {deadline, request.cancelled}, report.reason);
  report.for_good = report.fate == Fate::pinned && module->stays_mapped;
  {
    Lock lock(manager().mutex);
    manager().modules.remove(module);
    const std::string taints = taint_text(module->taint);
    manager().last_unloaded = module->name + (taints.empty() ? "" : "(" + taints + ")");
    announce_change();
  }
  if (report.fate == Fate::resident && request.lazy) reap_in_background();
  return report;
}

namespace {

// Has nothing to do, and had it once: others used it, and do so no more. Under the lock.
bool is_garbage(const Module& module) {
  return module.state == MOLT_MODULE_STATE_LIVE && module.busy == nullptr && module.was_used &&
         !module.permanent && module.users.empty() && module.reported_refcnt() == 0 &&
         module.inside == 0 && (!module.enabled || !hooks::has_callbacks(module.owner)) &&
         !has_notifiers(module);
}

// Residents on which gc has set its mark: nobody else touches them.
std::vector<ModulePtr> take_residents(bool lazy_only) {
  std::vector<ModulePtr> taken;
  Lock lock(manager().mutex);
  for (const ModulePtr& module : manager().residents) {
    if (module->busy != nullptr || (lazy_only && !module->lazy)) continue;
    module->busy = "gc";
    taken.push_back(module);
  }
  return taken;
}

// The rest of an unload that left the module in memory; "": it is unmapped now. `all`: as try_free().
std::string finish(const ModulePtr& module, bool ignore_pointers, bool all) {
  std::string reason = module->pinned ? "" : cannot_free(*module);
  Fate fate = Fate::resident;
  if (reason.empty()) {
    if (module->exit_pending) {
      module->exit_pending = false;
      call_exit(*module);
      take_down(*module);
    }
    module->ignore_pointers |= ignore_pointers;
    fate = module->pinned ? free_memory(module, reason)
                          : try_free(module, {Deadline::in_ms(0), {}}, all, reason);
  }
  Lock lock(manager().mutex);
  module->busy = nullptr;
  module->pinned = fate == Fate::pinned;
  module->reason = reason;
  auto& residents = manager().residents;
  if (is_gone(fate)) {
    residents.erase(std::find(residents.begin(), residents.end(), module));
  }
  announce_change();
  return is_gone(fate) ? "" : reason;
}

void finish_all(GcReport& report, bool lazy_only, bool ignore_pointers) {
  for (const ModulePtr& module : take_residents(lazy_only)) {
    std::string reason = finish(module, ignore_pointers, !lazy_only);
    if (reason.empty()) {
      log::line(module->name, "freed");
      report.freed.push_back(module->name);
    } else {
      report.kept.push_back({module->name, reason});
    }
  }
}

}  // namespace

bool finish_lazy() {
  GcReport report;
  finish_all(report, true, false);
  return report.kept.empty();
}

namespace {

std::vector<std::string> find_garbage() {
  std::vector<std::string> names;
  Lock lock(manager().mutex);
  for (const ModulePtr& module : manager().modules) {
    if (is_garbage(*module)) names.push_back(module->name);
  }
  return names;
}

// What each would come to: nothing is changed.
GcReport foresee() {
  GcReport report;
  std::vector<ModulePtr> residents;
  {
    Lock lock(manager().mutex);
    residents = manager().residents;
  }
  for (const ModulePtr& module : residents) {
    std::string reason = module->pinned ? still_there(*module) : cannot_free(*module);
    if (reason.empty() && !module->pinned) {
      reason = threads_left(*module, Deadline::in_ms(0), {});
      if (reason.empty()) reason = pointers_left(*module, false);
    }
    if (reason.empty()) {
      report.freed.push_back(module->name);
    } else {
      report.kept.push_back({module->name, reason});
    }
  }
  for (std::string& name : find_garbage()) report.freed.push_back(std::move(name));
  return report;
}

}  // namespace

GcReport gc(bool dry_run, bool ignore_pointers) {
  if (dry_run) return foresee();
  GcReport report;
  finish_all(report, false, ignore_pointers);
  // What goes may leave others that only it needed.
  for (bool progress = true; progress;) {
    progress = false;
    for (const std::string& name : find_garbage()) {
      UnloadRequest request;
      request.name = name;
      request.timeout_ms = 0;
      const auto unloaded = unload(request);
      if (!unloaded) continue;  // used again meanwhile, say: it stays, live
      progress = true;
      log::line(name, "unloaded: nothing needs it any more");
      if (is_gone(unloaded->fate)) {
        report.freed.push_back(name);
      } else {
        report.kept.push_back({name, unloaded->reason});
      }
    }
  }
  return report;
}

}  // namespace molt::module
