// show.cpp - what others see of patches and of the transition.

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "livepatch/internal.hpp"
#include "threads/procfs.hpp"

namespace molt::livepatch {
namespace {

// Under the lock.
PatchInfo info_of(const Patch& patch, unsigned order) {
  PatchInfo info;
  info.name = patch.name;
  info.enabled = patch.enabled;
  info.transition = engine().transition.patch.get() == &patch;
  info.replace = patch.replace;
  info.immediate = patch.immediate;
  info.forced = patch.forced;
  info.stack_order = order;
  for (const auto& object : patch.objects) {
    ObjectInfo o{display_name(*object), object->patched, {}};
    for (const auto& func : object->funcs) {
      o.functions.push_back({func->name, func->shown_position()});
    }
    info.objects.push_back(std::move(o));
  }
  return info;
}

bool in(const std::vector<arch::CodeRange>& code, std::uintptr_t address) {
  return std::any_of(code.begin(), code.end(),
                     [&](const arch::CodeRange& range) { return range.contains(address); });
}

Blocker describe(const threads::Finding& f) {
  Blocker b;
  b.tid = f.tid;
  b.thread = f.name[0] != '\0' ? f.name : threads::thread_name(f.tid);
  b.reason = f.reason;
  b.serial = f.serial;
  b.asleep_ms = f.asleep_ns / 1'000'000;
  if (f.syscall >= 0) b.syscall = threads::syscall_name(f.syscall);
  if (f.verdict == threads::Verdict::inside) {
    b.address = f.address();
    b.stack_address = f.at;
    b.depth = f.depth;
    b.certain = f.certain;
    b.function = function_at(b.address);
  }
  return b;
}

std::string text_of(const Blocker& b) {
  char text[200];
  std::string where = b.function.empty() ? "" : " in " + b.function;
  std::string what = b.syscall.empty() ? "" : ", asleep in " + b.syscall;
  std::snprintf(text, sizeof text, "thread %d (%s)%s%s", b.tid, b.thread.c_str(), where.c_str(),
                what.empty() && b.function.empty() ? (", " + b.reason).c_str() : what.c_str());
  return text;
}

}  // namespace

std::vector<PatchInfo> list() {
  Lock lock(engine().mutex);
  std::vector<PatchInfo> all;
  unsigned order = 0;
  for (const PatchPtr& patch : engine().patches) all.push_back(info_of(*patch, ++order));
  return all;
}

Result<PatchInfo> find(std::string_view name) {
  for (PatchInfo& patch : list()) {
    if (patch.name == name) return std::move(patch);
  }
  return fail(ENOENT, "no patch %.*s is installed", static_cast<int>(name.size()), name.data());
}

std::optional<TransitionInfo> transition() {
  Lock lock(engine().mutex);
  const Transition& t = engine().transition;
  if (!t.active()) return std::nullopt;
  TransitionInfo info;
  info.patch = t.patch->name;
  info.patching = t.patching();
  info.forced = t.forced;
  info.threads = t.threads;
  info.left = t.left;
  info.done = t.threads - t.left;
  info.tries = t.tries;
  info.age_ms = (now_ns() - t.began_ns) / 1'000'000;
  return info;
}

History history() {
  Lock lock(engine().mutex);
  return engine().history;
}

std::string function_at(std::uintptr_t address) {
  for (const Site* site : patched_sites()) {
    for (const Func* version : site->stack) {
      if (in(version->code, address)) return site->name;
    }
    if (address - site->address < site->size || in(site->parts, address) ||
        site->seat->redirect.copy_range().contains(address)) {
      return site->name;
    }
    if (site->gate != nullptr && arch::gate_counted(site->gate->slot.address).contains(address)) {
      return site->name;
    }
  }
  for (const Pinned& pinned : engine().pinned) {
    for (const auto& object : pinned.patch->objects) {
      for (const auto& func : object->funcs) {
        if (in(func->code, address)) return func->name;
      }
    }
  }
  return "";
}

std::string holders_text(const Transition& t) {
  std::string text;
  std::size_t shown = 0;
  for (const threads::Finding& f : t.holders) {
    if (shown++ == 3) {
      text += " and " + std::to_string(t.holders.size() - 3) + " more";
      break;
    }
    if (!text.empty()) text += "; ";
    text += text_of(describe(f));
  }
  if (!t.obstacle.empty()) text += (text.empty() ? "" : "; ") + t.obstacle;
  return text.empty() ? "it is about to be over" : text;
}

std::vector<Blocker> blocking() {
  {
    Token token(std::try_to_lock, __builtin_frame_address(0));
    if (token && engine().transition.active()) try_complete(false);
  }
  Lock lock(engine().mutex);
  std::vector<Blocker> all;
  for (const threads::Finding& f : engine().transition.holders) all.push_back(describe(f));
  if (all.empty() && !engine().transition.obstacle.empty()) {
    Blocker b;
    b.reason = engine().transition.obstacle;
    all.push_back(b);
  }
  return all;
}

Result<int> thread_state(int tid) {
  if (!gate::exists(tid)) return fail(ESRCH, "there is no thread %d", tid);
  std::uint32_t generation = 0;
  int aim = 0;
  {
    Lock lock(engine().mutex);
    const Transition& t = engine().transition;
    if (!t.active()) return -1;
    generation = t.generation;
    aim = t.patching() ? 1 : 0;
  }
  if (generation == 0) return aim;
  const int side = gate::side_now(tid, generation);
  return side < 0 ? aim : side;
}

std::vector<int> thread_ids() {
  std::vector<int> tids;
  static_cast<void>(threads::inspect([&](threads::Census& census) {
    if (!census.refresh()) return;
    for (threads::Thread* thread : census.threads()) {
      if (!census.is_worker(*thread)) tids.push_back(thread->tid);
    }
  }));
  return tids;
}

std::vector<PinnedInfo> pinned() {
  Lock lock(engine().mutex);
  std::vector<PinnedInfo> all;
  for (const Pinned& p : engine().pinned) all.push_back({p.patch->name, p.reason});
  return all;
}

}  // namespace molt::livepatch
