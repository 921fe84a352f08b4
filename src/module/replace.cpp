// replace.cpp - a new version beside the old, its state handed over, one switch, the old one gone.
//
//   bring up the new -> [pause -> drain -> save -> restore] -> switch -> drain the old -> take it down
//
// Up to the switch a failure takes the new version down and leaves the old one as it was. A paused
// hand-over holds back only callers that reach this module, and no longer than the deadline; a live
// one holds back nobody: the old version saves while it runs, and once more what came since, when
// its callbacks have ended after the switch. If that second transfer fails the switch is reversed.

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/poison.hpp"
#include "module/internal.hpp"
#include "module/state.hpp"

namespace molt::module {
namespace {

constexpr int default_pause_ms = 1000;
// For threads to leave the old version's code.
constexpr int default_old_ms = 10'000;

bool hands_over(const Module& old, const Module& incoming) {
  return old.descriptor->state && old.descriptor->save && incoming.descriptor->state &&
         incoming.descriptor->restore;
}

Status transfer(Module& old, Module& incoming, bool final, std::size_t& bytes) {
  molt_state state;
  state.version = old.descriptor->state->version;
  state.final = final;
  if (int result = old.descriptor->save(&state); result != 0) {
    return fail(result < 0 ? -result : EINVAL, "%s: version %s could not save its state: %s",
                old.name.c_str(), old.version.c_str(), errno_name(result < 0 ? -result : EINVAL));
  }
  if (int result = incoming.descriptor->restore(&state); result != 0) {
    return fail(result < 0 ? -result : EINVAL, "%s: version %s could not restore the state: %s",
                old.name.c_str(), incoming.version.c_str(),
                errno_name(result < 0 ? -result : EINVAL));
  }
  bytes += state.bytes.size();
  return {};
}

Status stalled(const Module& old, const std::vector<hooks::Inside>& inside, bool cancelled) {
  return fail(cancelled ? ECANCELED : ETIMEDOUT,
              "%s: gave up waiting for %s; version %s goes on; allow a longer pause with --timeout",
              old.name.c_str(), name_them(inside).c_str(), old.version.c_str());
}

struct Handover {
  Module& old;
  Module& incoming;
  const ReplaceRequest& request;
  Deadline deadline;
  ReplaceReport& report;

  bool cancelled() const { return request.cancelled && request.cancelled(); }

  // Before the switch. Nobody can interrupt save() and restore(): when they have come to an end, who asked
  // may have gone, and told his user that nothing came of it.
  Status first_transfer() {
    if (Status ok = transfer(old, incoming, false, report.state_bytes); !ok) return ok;
    if (!cancelled()) return {};
    return fail(ECANCELED, "%s: nobody waits for the replacement any more; version %s goes on",
                old.name.c_str(), old.version.c_str());
  }

  // One pause, until `until` at most. False: somebody was inside all the while.
  bool pause(Deadline until, Status& ok) {
    std::int64_t from = now_ns();
    hooks::begin_pause(old.owner);
    std::vector<hooks::Inside> inside;
    bool empty = drain(old, until, request.cancelled, inside);
    if (!empty) {
      ok = stalled(old, inside, cancelled());
    } else {
      ok = first_transfer();
    }
    if (ok) ok = hooks::change(old.owner, incoming.owner);
    if (!ok) hooks::end_pause(old.owner);
    report.pause_us = std::max(report.pause_us, (now_ns() - from) / 1000);
    return empty;
  }

  // Whoever was held up gets on, and whoever is inside has a moment to use it.
  void let_pass(std::int64_t moment_ns) {
    Deadline moment = deadline.sooner(Deadline{now_ns() + moment_ns});
    while (!deadline.passed() && !cancelled() &&
           (hooks::held_up(old.owner) > 0 || (!moment.passed() && hooks::entered(old.owner)))) {
      timespec nap{0, 200'000};
      nanosleep(&nap, nullptr);
    }
  }

  // Who is inside may be waiting for one whom the pause holds up: a coroutine whose own next call
  // reaches the module on another thread, or that only a thread can resume which waits here; a
  // callback that gave work away. No one can tell. So a pause that does not come to an end is given
  // up early, to let those pass, and begun again, each time four times as long. Who needs nobody else
  // is as well off with the last one, which has more than half of the time.
  Status paused() {
    constexpr std::int64_t first_at_most_ns = 100'000'000;
    Status ok;
    std::int64_t whole_ns = deadline.at_ns - now_ns();
    std::int64_t part_ns = std::min(whole_ns / 16, first_at_most_ns);
    for (; part_ns < (deadline.at_ns - now_ns()) / 2; part_ns *= 4) {
      if (pause(Deadline{now_ns() + part_ns}, ok) || cancelled()) return ok;
      let_pass(part_ns / 4);
    }
    pause(deadline, ok);
    return ok;
  }

  Status live() {
    if (Status ok = first_transfer(); !ok) return ok;
    if (Status ok = hooks::change(old.owner, incoming.owner); !ok) return ok;
    std::vector<hooks::Inside> inside;
    Status ok;
    if (!drain(old, deadline, request.cancelled, inside)) {
      ok = stalled(old, inside, cancelled());
    } else {
      ok = transfer(old, incoming, true, report.state_bytes);
    }
    if (ok) return {};
    // Back to the old one, which has all that it saved. Only memory for chains could be missing, and
    // those of a moment ago are there to be used again.
    if (Status back = hooks::change(incoming.owner, old.owner); !back) {
      poison("version %s of %s has no state, and %s, which has it, cannot be put back: %s",
             incoming.version.c_str(), old.name.c_str(), old.version.c_str(), back.error().detail);
      return pass(back);
    }
    return ok;
  }

  Status run(bool in_force) {
    bool state = hands_over(old, incoming);
    if (!in_force) {
      std::vector<hooks::Inside> inside;
      if (!state) return {};
      if (!drain(old, deadline, request.cancelled, inside))
        return stalled(old, inside, cancelled());
      return first_transfer();
    }
    if (!state) return hooks::change(old.owner, incoming.owner);
    return (old.descriptor->state->flags & MOLT_MODULE_LIVE_HANDOVER) ? live() : paused();
  }
};

}  // namespace

Status state_compatible(const Module& old, const Module& incoming, bool force) {
  const molt_module& from = *old.descriptor;
  const molt_module& to = *incoming.descriptor;
  if (from.state == nullptr || from.save == nullptr) return {};
  if (to.state == nullptr || to.restore == nullptr) {
    if (force) return {};
    return fail(EINVAL,
                "%s: version %s has state (version %u) that %s does not take over; --force "
                "drops it",
                old.name.c_str(), old.version.c_str(), from.state->version,
                incoming.version.c_str());
  }
  if (from.state->version < to.state->oldest || from.state->version > to.state->version) {
    return fail(EINVAL, "%s: version %s understands state versions %u to %u, %s has %u",
                old.name.c_str(), incoming.version.c_str(), to.state->oldest, to.state->version,
                old.version.c_str(), from.state->version);
  }
  return {};
}

Result<ReplaceReport> replace(const ReplaceRequest& request) {
  if (Status ok = operations_allowed(); !ok) return pass(ok);
  std::string name = request.name;
  LoadRequest load_request;
  load_request.fd = request.fd;
  load_request.path = request.path;
  load_request.args = request.args;
  load_request.force = request.force;
  load_request.dry_run = request.dry_run;
  load_request.cancelled = request.cancelled;
  auto prepared = prepare(load_request);
  if (!prepared) return pass(prepared);
  if (prepared->is_patch_file) {
    return fail(EINVAL, "%s is a patch file, which takes no module's place; `molt apply` it",
                request.path.c_str());
  }
  if (name.empty()) name = prepared->name;
  OperationScope scope("replace " + name);

  // 1. The old one: as for unload, save that it stays in force.
  ModulePtr old;
  {
    Lock lock(manager().mutex);
    old = find(name);
    if (!old) return fail(ENOENT, "no module %s is loaded; load it instead", name.c_str());
    if (prepared->name != name) {
      return fail(EINVAL, "%s is module %s, not %s", request.path.c_str(), prepared->name.c_str(),
                  name.c_str());
    }
    if (Status ok = removable(*old, false); !ok) return pass(ok);
    if (self_inside(*old)) {
      return fail(EDEADLK, "%s: a module cannot replace itself from code of its own", name.c_str());
    }
    if (!request.dry_run) old->busy = "replace";
  }
  auto release_old = [&] {
    Lock lock(manager().mutex);
    old->busy = nullptr;
    announce_change();
  };

  // 2. The new one beside it.
  auto up = bring_up(load_request, *prepared, old.get());
  if (!up) {
    if (!request.dry_run) release_old();
    return pass(up);
  }
  ModulePtr incoming = *up;
  ReplaceReport report;
  report.name = name;
  report.from = old->version;
  report.to = incoming->version;
  report.warnings = incoming->warnings;
  if (request.dry_run) return report;

  // 3. State and switch.
  Deadline deadline =
      Deadline::in_ms(request.timeout_ms < 0 ? default_pause_ms : request.timeout_ms);
  Status ok = state_compatible(*old, *incoming, request.force);
  if (ok) ok = Handover{*old, *incoming, request, deadline, report}.run(old->enabled);
  if (!ok) {
    bring_down(incoming);
    release_old();
    return pass(ok);
  }

  // 4. The new one takes the old one's place on the list: from here there is no way back.
  {
    Lock lock(manager().mutex);
    incoming->enabled = old->enabled;
    incoming->requests.loads = old->requests.loads + 1;
    incoming->requests.joined = old->requests.joined;
    for (ModulePtr& module : manager().modules) {
      if (module == old) module = incoming;
    }
    old->state = MOLT_MODULE_STATE_GOING;
    if (old->references() - stoppable_threads(*old) <= 0) old->drop_base();
    incoming->state = MOLT_MODULE_STATE_LIVE;
    announce_change();
  }
  log::line(name, "replaced: version %s by %s", old->version.c_str(), incoming->version.c_str());

  // 5. The old one goes; a thread that stays in it keeps its memory, not the name.
  std::vector<hooks::Inside> inside;
  bool empty = drain(*old, deadline, request.cancelled, inside);
  bool stopped = empty && stop_threads(*old, deadline, request.cancelled);
  // Nothing waits for this any more but who asked.
  Deadline old_deadline = request.timeout_ms < 0 ? Deadline::in_ms(default_old_ms) : deadline;
  old->lazy = true;
  report.old =
      go(old, empty && !old->permanent, !stopped, {old_deadline, request.cancelled}, report.reason);
  report.for_good = report.old == Fate::pinned && old->stays_mapped;
  if (report.old == Fate::resident) reap_in_background();
  if (Status patched = patch_coming(*incoming); !patched) {
    log::line(name, "livepatches were not applied to the new version: %s", patched.error().detail);
  }
  tell_formed(*incoming);
  notify(*incoming, MOLT_MODULE_STATE_LIVE);
  {
    Lock lock(manager().mutex);
    --incoming->refcnt;
    incoming->loader_tid = 0;
    announce_change();
  }
  return report;
}

}  // namespace molt::module
