// unload.cpp - taking a module down, in the order of KERNEL.md M1.6, and proving that it is gone.
//
//   disable -> drain -> threads -> exit -> GOING notifiers -> objects -> references ->
//   [residency proof over the text -> pointer audit] -> dlclose -> proof that it is unmapped
//
// The bracketed steps belong to threads/ and go into dispose(), before free_memory().

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>

#include "elf/loaded.hpp"
#include "module/internal.hpp"

namespace molt::module {
namespace {

constexpr int default_drain_ms = 10'000;

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
  if (!module.mapping || elf::mapped(*module.mapping)) return "it is still in /proc/self/maps";
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
  while (module.inside != 0) {
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
  if (module->handle != nullptr) {
    module->descriptor = nullptr;
    dlclose(module->handle);
    module->handle = nullptr;
  }
  reason = still_there(*module);
  if (reason.empty()) {
    store_forget(module->stored);
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
  if (module.owner != nullptr && hooks::entered(module.owner)) return "a thread is inside it";
  Lock lock(manager().mutex);
  if (module.inside != 0) return "the core is inside it";
  if (int threads = thread_count(module)) {
    return std::to_string(threads) + " of its threads run";
  }
  if (int references = module.references()) {
    return std::to_string(references) + " reference" + (references == 1 ? "" : "s") + " held";
  }
  return "";
}

Fate dispose(const ModulePtr& module, std::string& reason) {
  reason = cannot_free(*module);
  if (!reason.empty()) {
    keep_resident(module, false, reason);
    return Fate::resident;
  }
  if (module->owner != nullptr) {
    hooks::destroy(module->owner);
    module->owner = nullptr;
  }
  Fate fate = free_memory(module, reason);
  if (fate == Fate::pinned) keep_resident(module, true, reason);
  return fate;
}

Fate go(const ModulePtr& module, bool with_exit, bool resident, std::string& reason) {
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
  drop_providers(*module);
  if (resident) {
    reason =
        with_exit || module->permanent ? "asked for" : "a thread was inside; exit() waits for it";
    std::string why = cannot_free(*module);
    if (!why.empty()) reason += "; " + why;
    module->exit_pending = !with_exit && !module->permanent;
    keep_resident(module, false, reason);
    return Fate::resident;
  }
  return dispose(module, reason);
}

Result<UnloadReport> unload(const UnloadRequest& request) {
  if (Status ok = operations_allowed(); !ok) return pass(ok);
  if (request.name.empty() || request.name.size() > MOLT_NAME_MAX) {
    return fail(ENOENT, "'%.60s' is no module name", request.name.c_str());
  }
  OperationScope scope("unload " + request.name);
  Deadline deadline =
      Deadline::in_ms(request.timeout_ms < 0 ? default_drain_ms : request.timeout_ms);
  UnloadReport report;
  report.name = request.name;

  // 1. May it go? From GOING on no reference can be taken.
  ModulePtr module;
  bool enabled;
  {
    Lock lock(manager().mutex);
    module = find(request.name);
    if (!module) return fail(ENOENT, "no module %s is loaded", request.name.c_str());
    if (Status ok = removable(*module, request.resident); !ok) return pass(ok);
    if (self_inside(*module)) {
      return fail(EDEADLK, "%s: a module cannot unload itself from code of its own",
                  module->name.c_str());
    }
    if (request.dry_run) return report;
    enabled = module->enabled;
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
  if (!stopped && !request.resident) {
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
        "%s: gave up waiting for %s; it is live again; wait longer (--timeout) or --resident",
        module->name.c_str(), who.c_str());
  }

  // 3. The end.
  bool with_exit = !module->permanent && empty;
  report.fate = go(module, with_exit, request.resident, report.reason);
  {
    Lock lock(manager().mutex);
    manager().modules.remove(module);
    manager().last_unloaded = module->name;
    announce_change();
  }
  return report;
}

GcReport gc(bool dry_run) {
  GcReport report;
  std::vector<ModulePtr> candidates;
  {
    Lock lock(manager().mutex);
    candidates = manager().residents;
    // Two gc at once must not free one module twice: whoever takes it off the list has it.
    if (!dry_run) manager().residents.clear();
  }
  for (const ModulePtr& module : candidates) {
    std::string reason = module->pinned ? "" : cannot_free(*module);
    if (dry_run) {
      if (reason.empty() && module->pinned) reason = still_there(*module);
      if (reason.empty()) {
        report.freed.push_back(module->name);
      } else {
        report.kept.push_back({module->name, reason});
      }
      continue;
    }
    if (reason.empty()) {
      if (module->exit_pending) {
        module->exit_pending = false;
        call_exit(*module);
        take_down(*module);
      }
      if (module->owner != nullptr) {
        hooks::destroy(module->owner);
        module->owner = nullptr;
      }
      if (free_memory(module, reason) == Fate::unmapped) {
        log::line(module->name, "freed");
        report.freed.push_back(module->name);
        continue;
      }
      module->pinned = true;
    }
    report.kept.push_back({module->name, reason});
    Lock lock(manager().mutex);
    module->reason = reason;
    manager().residents.push_back(module);
  }
  Lock lock(manager().mutex);
  announce_change();
  return report;
}

}  // namespace molt::module
