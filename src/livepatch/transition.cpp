// transition.cpp - from the first thread that changes over to the last, there or back.
//
// A transition has two sides, unpatched and patched, and aims at one of them. Both are what they are
// for its whole life; a reversal changes the aim. What counts as old code is every version of every
// function concerned but the one that is used on the side aimed at: not only the one just superseded.
// So a thread that sleeps in a version which an immediate or forced patch left behind holds up every
// later transition of that function, and none can complete over its head; after that patch was taken back, too.

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/descriptor_room.hpp"
#include "base/log.hpp"
#include "base/poison.hpp"
#include "livepatch/internal.hpp"
#include "threads/own_frames.hpp"
#include "threads/own_stack.hpp"
#include "threads/own_thread.hpp"

namespace molt::livepatch {
namespace {

constexpr int prologue_patience_ms = 3000;
constexpr std::int64_t first_retry_ms = 1;
constexpr std::int64_t longest_retry_ms = 100;
constexpr std::int64_t slow_retry_ms = 1000;  // of what is only to be freed
constexpr std::int64_t finish_after_ms = 10;  // straighten, collect
constexpr unsigned most_straighten_tries = 5;
constexpr std::int64_t sample_ns = 2'000'000;
constexpr unsigned tries_before_sampling = 3;
constexpr int most_listings = 64;
constexpr std::int64_t poke_every_ns = 15'000'000'000;  // KERNEL.md P4.6

// --- what a thread compares its own stack with --------------------------------------------------------

struct Armed {
  std::uint32_t generation;
  gate::Side target;
  threads::RangeSet ranges;
};
threads::Posted<Armed> g_armed;

// f(ranges) on what a thread that changes over to `target` must not have on its stack; `otherwise` if
// that is not what is asked any more.
template <class T, class F>
T with_old_code(std::uint32_t generation, gate::Side target, T otherwise, F&& f) {
  return g_armed.read([&](const Armed* armed) {
    const bool asked =
        armed != nullptr && armed->generation == generation && armed->target == target;
    return asked ? f(armed->ranges) : otherwise;
  });
}

threads::Own self_check(std::uint32_t generation, gate::Side target, std::uintptr_t sp,
                        std::uintptr_t& held_at) {
#ifdef MOLT_MUTATE_NO_SELF_CHECK
  return threads::Own::leaves;
#endif
  return with_old_code(
      generation, target, threads::Own::unknown,
      [&](const threads::RangeSet& ranges) { return look_at_own_stack(ranges, sp, &held_at); });
}

// --- what is old --------------------------------------------------------------------------------------

const Func* version_after(const Change& change, gate::Side target) {
  return target == gate::Side::patched ? change.patched : change.unpatched;
}

bool is_original(const Func* version) { return version == nullptr || version->nop; }

threads::RangeSet old_code(const Transition& t, std::span<const Change> more = {}) {
  threads::RangeSet ranges;
#ifndef MOLT_MUTATE_NO_TRAMPOLINE
  add_pool_code(ranges);
#endif
  // Of patches that are over, immediate or forced ones, while a thread may still be in them.
  const auto add_left_behind = [&](const Site& site) {
    for (const Pinned& pinned : engine().pinned) {
      if (!pinned.needs_proof) continue;
      for (const auto& object : pinned.patch->objects) {
        for (const auto& func : object->funcs) {
          if (func->site == &site && !func->nop) add_version(ranges, site, func.get());
        }
      }
    }
  };
  const auto add = [&](const Change& change) {
    const Func* mine = change.gated ? version_after(change, t.target) : nullptr;
    if (!change.gated) {
      // Below another's version: nothing changes for callers, but it is to be empty when it goes.
      if (!t.patching()) add_version(ranges, *change.site, change.unpatched);
      return;
    }
    if ((change.patched != nullptr && change.patched->immediate)) return;
    for (const Func* version : change.site->stack) {
      if (version == mine || version->nop) continue;
      add_version(ranges, *change.site, version);
    }
    if (!is_original(mine)) add_version(ranges, *change.site, nullptr);
    add_left_behind(*change.site);
  };
  for (const Change& change : t.changes) add(change);
  for (const Change& change : more) add(change);
  return ranges;
}

void publish_old_code(const Transition& t) {
  g_armed.post(new Armed{t.generation, t.target, old_code(t)});
}

const char* direction(gate::Side side) {
  return side == gate::Side::patched ? "patching" : "unpatching";
}

bool is_gated(const Transition& t) { return t.generation != 0; }

// --- for show.cpp -------------------------------------------------------------------------------------

constexpr std::size_t most_moments = 256;

// Under the lock. `blocked`: of those that are left, asleep in code that is old.
void note_moment(const Transition& t, unsigned blocked, unsigned left, unsigned done) {
  auto& moments = engine().history.moments;
  // A long one is told less closely.
  if (moments.size() == most_moments) {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < moments.size(); i += 2) moments[kept++] = moments[i];
    moments.resize(kept);
  }
  Moment moment{(now_ns() - t.began_ns) / 1000, done, left - blocked, blocked};
  if (t.patching()) std::swap(moment.unpatched, moment.patched);
  moments.push_back(moment);
}

unsigned blocked_of(const std::vector<threads::Finding>& holders) {
  return static_cast<unsigned>(
      std::count_if(holders.begin(), holders.end(), [](const threads::Finding& f) {
        return f.verdict == threads::Verdict::inside && f.activity == threads::Activity::sleeping;
      }));
}

// --- putting things in place ---------------------------------------------------------------------------

// Brings entries to what will be in force once `removed` have gone, and takes those out of the stacks: all
// entries, or those that have such a version; the others keep their gates. All or nothing. `traps_open`: as of
// lead().
enum class Entries : std::uint8_t { all, with_removed };
template <class Removed>
Status settle_sites(Entries which, bool traps_open, Removed&& removed) {
  std::vector<Lead> leads;
  for (Site* site : patched_sites()) {
    const bool has_removed = std::any_of(site->stack.begin(), site->stack.end(),
                                         [&](const Func* f) { return removed(*f); });
    if (which == Entries::with_removed && !has_removed) continue;
    const auto after = std::find_if(site->stack.begin(), site->stack.end(),
                                    [&](const Func* f) { return !removed(*f); });
    Func* top = after == site->stack.end() ? nullptr : *after;
    if (site->gate == nullptr && top == site->top()) continue;
    leads.push_back({site, nullptr, top, false});
  }
  if (Status ok = lead(leads, 0, prologue_patience_ms, nullptr, 0, traps_open); !ok) return ok;
  Lock lock(engine().mutex);
  for (Site* site : patched_sites()) {
    std::erase_if(site->stack, [&](Func* f) {
      if (!removed(*f)) return false;
      f->patched = f->transition = false;
      return true;
    });
  }
  return {};
}

void forget_nops(Patch& patch) {
  Lock lock(engine().mutex);
  for (const auto& object : patch.objects) {
    std::erase_if(object->funcs, [](const auto& func) { return func->nop; });
  }
  std::erase_if(patch.objects, [](const auto& object) { return object->dynamic; });
}

// --- completing ------------------------------------------------------------------------------------------

// False: an entry could not be brought into place now; the transition goes on.
bool complete(bool traps_open = false) {
  Engine& e = engine();
  Transition& t = e.transition;
  PatchPtr patch = t.patch;
  const bool patching = t.patching();
  std::vector<PatchPtr> replaced;
  if (patching && patch->replace) {
    Lock lock(e.mutex);
    for (const PatchPtr& other : e.patches) {
      if (other == patch) break;  // those before it alone
      replaced.push_back(other);
    }
  }
  const auto is_replaced = [&](const Patch* p) {
    return std::any_of(replaced.begin(), replaced.end(),
                       [&](const PatchPtr& r) { return r.get() == p; });
  };
  Status placed = settle_sites(Entries::all, traps_open, [&](const Func& f) {
    if (!patching) return f.object->patch == patch.get();
    return f.nop || is_replaced(f.object->patch);
  });
  if (!placed) {
    Lock lock(e.mutex);
    t.obstacle = placed.error().detail;
    return false;
  }
  t.completing = true;
  retire_gates();
  gate::end();
  g_armed.post(nullptr);
  const bool forced = t.forced;
  const bool never_asked = !is_gated(t);

  say("'%s': completing %s transition", patch->name.c_str(), direction(t.target));
  {
    Lock lock(e.mutex);
    t.changes.clear();  // nops go
    for (const auto& object : patch->objects) {
      for (const auto& func : object->funcs) func->transition = false;
      if (!patching) object->patched = false;
    }
    for (const PatchPtr& other : replaced) {
      other->enabled = false;
      for (const auto& object : other->objects) object->patched = false;
    }
  }
  if (patching && patch->replace) {
    forget_nops(*patch);
    const Observer* observer;
    {
      Lock lock(e.mutex);
      observer = e.observer;
    }
    if (observer != nullptr) observer->changed(patch->name);
  }
  // Libraries may come and go during the callbacks; each object's is called once.
  for (const auto& object : patch->objects) object->post_patch_due = object->binding.loaded;
  const auto next_due = [&]() -> Object* {
    for (const auto& object : patch->objects) {
      const bool due = patching ? object->post_patch_due : object->post_unpatch_due;
      if (due && object->binding.loaded) return object.get();
    }
    return nullptr;
  };
  while (Object* object = next_due()) {
    object->post_patch_due = false;
    if (patching) {
      call_post_patch(*object);
    } else {
      call_post_unpatch(*object);
    }
  }
  say("'%s': %s complete", patch->name.c_str(), direction(t.target));
  {
    Lock lock(e.mutex);
    if (!e.history.moments.empty()) note_moment(t, 0, 0, t.threads);
    e.history.over = true;
    t = Transition{};
    e.finishing = true;
  }
  const char* unproven = forced        ? "its transition was forced"
                         : never_asked ? "it is immediate"
                                       : nullptr;
  for (const PatchPtr& other : replaced) {
    retire(other, unproven != nullptr      ? unproven
                  : other->has_immediate() ? "it is immediate"
                  : patch->has_immediate() ? "what replaced it is immediate"
                                           : nullptr);
  }
  if (!patching) {
    const bool immediate_functions = patch->has_immediate();
    retire(patch, unproven != nullptr   ? unproven
                  : immediate_functions ? "it is immediate"
                                        : nullptr);
  } else if (forced) {
    Lock lock(e.mutex);
    patch->forced = false;  // KERNEL.md P5.8: nothing of this patch was left behind
  }
  // Nobody waits for what comes now.
  const bool is_clean = collect_later();
  if (const bool has_short = has_short_jumps(); has_short || !is_clean) {
    {
      Lock lock(e.mutex);
      e.straighten_tries = has_short ? most_straighten_tries : 0;
    }
    ensure_worker();
  }
  announce();
  return true;
}

}  // namespace

// --- steps ---------------------------------------------------------------------------------------------

void init_transition(const PatchPtr& patch, gate::Side target) {
  threads::find_main_stack();
  gate::set_self_check(self_check);
  Engine& e = engine();
  {
    Lock lock(e.mutex);
    e.transition = Transition{};
    e.transition.patch = patch;
    e.transition.target = target;
    e.transition.began_ns = now_ns();
    e.history = {patch->name, false, {}};
  }
  if (!patch->immediate) {
    const std::uint32_t generation = gate::begin(gate::other(target));
    Lock lock(e.mutex);
    e.transition.generation = generation;
  }
  announce();
  if (target == gate::Side::patched) return;

  // All functions are in force already; they become gated in one step.
  Transition& t = e.transition;
  std::vector<Lead> leads;
  std::vector<Change> changes;
  for (const auto& object : patch->objects) {
    for (const auto& func : object->funcs) {
      if (!func->patched) continue;
      Site* site = func->site;
      if (site->top() != func.get()) {
        changes.push_back({site, func.get(), func.get(), false});
        continue;
      }
      Func* below = site->stack.size() > 1 ? site->stack[1] : nullptr;
      changes.push_back({site, below, func.get(), true});
      if (is_gated(t)) leads.push_back({site, below, func.get(), true});
    }
  }
  Status placed = lead(leads, t.generation, prologue_patience_ms);
  Lock lock(e.mutex);
  t.changes = std::move(changes);
  if (!placed) t.obstacle = placed.error().detail;
  for (const Change& change : t.changes) change.patched->transition = true;
}

Status patch_object(Object& object) {
  Engine& e = engine();
  Transition& t = e.transition;
  // One that is loaded in the middle of its patch's transition, too: whoever is in old code is marked by then,
  // and calls the old version of it.
  const bool gated = is_gated(t) && t.patch.get() == object.patch && !t.completing;
  std::vector<Lead> leads;
  std::vector<Change> changes;
  if (!redirecting()) {
    say("failed to register redirect for function '%s' (%d)",
        object.funcs.empty() ? "" : object.funcs.front()->name.c_str(), -EBUSY);
    return fail(EBUSY, "redirecting functions is switched off in this process (host/redirect)");
  }
  // Of one function one version: aliases are one function, and one library may be listed by two names. A nop
  // is listed behind what it stands beside.
  const auto has_version = [&](const Site* site) {
    return std::any_of(changes.begin(), changes.end(),
                       [&](const Change& change) { return change.site == site; }) ||
           std::any_of(site->stack.begin(), site->stack.end(),
                       [&](const Func* f) { return f->object->patch == object.patch; });
  };
  for (const auto& func : object.funcs) {
    if (has_version(func->site)) continue;
    leads.push_back({func->site, func->site->top(), func.get(), gated});
    changes.push_back({func->site, func->site->top(), func.get(), gated});
  }
  // The proof for the entries looks at the stacks that the census is to look at.
  static std::uint64_t last_number = 0;
  threads::RangeSet foreseen;
  std::uint64_t number = 0;
  if (gated && !t.sealed) {
    foreseen = old_code(t, changes);
    number = ++last_number;
  }
  Status placed =
      lead(leads, t.generation, prologue_patience_ms, number != 0 ? &foreseen : nullptr, number);
  if (!placed) {
    say("failed to register redirect for function '%s' (%d)", object.funcs.front()->name.c_str(),
        -placed.error().code);
    return placed;
  }
  Lock lock(e.mutex);
  t.foreseen = std::move(foreseen);
  t.foreseen_number = number;
  for (const Change& change : changes) {
    change.site->stack.insert(change.site->stack.begin(), change.patched);
    change.patched->patched = true;
    change.patched->transition = gated;
  }
  object.patched = true;
  if (!gated) return {};
  t.changes.insert(t.changes.end(), changes.begin(), changes.end());
  lock.unlock();
  // Nobody has run anything of the object yet.
  if (t.sealed) publish_old_code(t);
  return {};
}

Status unpatch_object(Object& object) {
  Status ok = settle_sites(Entries::with_removed, false,
                           [&](const Func& f) { return f.object == &object; });
  if (!ok) return ok;
  Lock lock(engine().mutex);
  object.patched = false;
  std::erase_if(engine().transition.changes, [&](const Change& c) {
    return c.patched != nullptr && c.patched->object == &object;
  });
  return {};
}

void drop_object(Object& object) {
  Lock lock(engine().mutex);
  for (const auto& func : object.funcs) {
    if (func->site != nullptr) std::erase(func->site->stack, func.get());
  }
  std::erase_if(engine().transition.changes, [&](const Change& c) {
    return c.patched != nullptr && c.patched->object == &object;
  });
  object.patched = false;
}

void start_transition() {
  Engine& e = engine();
  Transition& t = e.transition;
  say("'%s': starting %s transition", t.patch->name.c_str(), direction(t.target));
  {
    Lock lock(e.mutex);
    t.patch->enabled = t.patching();
  }
  try_complete(false);
}

namespace {

struct Attempt {
  unsigned threads = 0, left = 0;
  std::vector<threads::Finding> holders;
  // Of a census that found everybody out and asleep: how often each had run, in the order of the list
  // that was the census's then. Empty otherwise.
  std::vector<std::uint64_t> runs;
  std::uint64_t of_list = 0;
};

// The runtime's own two threads are in no old code that matters to anybody.
bool is_own_thread(const threads::Thread& thread) {
  return thread.tid == engine().worker_tid.load(std::memory_order_relaxed);
}
void take_own_threads_along(const Transition& t) {
  gate::force(gettid(), t.generation, t.target);
  if (const int worker = engine().worker_tid) gate::force(worker, t.generation, t.target);
}

// G4, G5, G7, with the gates in place: everybody is looked at. Who is out takes the side aimed at as if
// it were born later; the others are marked as being on the side that is left, and are `left` over.
Status take_census(Transition& t, const threads::RangeSet& ranges, Attempt& a) {
  const bool asker_is_out = threads::own_frames_are_out(ranges);
  const int asker = gettid();
  [[maybe_unused]] const void* own_frame = engine().own_frame;
  Status verdict = fail(EAGAIN, "threads come and go faster than they can be looked at");
  Status asked = threads::inspect([&](threads::Census& census) {
    std::uint64_t looked_at = 0;  // serials up to here
    std::vector<threads::Thread*> fresh;
    std::vector<threads::Finding> findings;
    bool all_slept = true;
    const std::uint64_t foreseen = t.foreseen.includes(ranges) ? t.foreseen_number : 0;
    const auto look_at_fresh = [&] {
      fresh.clear();
      std::uint64_t newest = looked_at;
      for (threads::Thread* thread : census.threads()) {
        newest = std::max(newest, thread->serial);
        if (thread->serial <= looked_at) continue;
        if (asker_is_out && thread->tid == asker) continue;
        if (is_own_thread(*thread)) {
          all_slept = all_slept && thread->tid == asker;
          continue;
        }
        // Out when its stack was copied for the proof that preceded, and asleep since.
        if (threads::is_clean(census, *thread, foreseen)) continue;
        fresh.push_back(thread);
      }
      looked_at = newest;
      findings.resize(fresh.size());
#ifndef MOLT_MUTATE_BLIND_CENSUS
      threads::look_at_each(census, fresh, ranges, asker, own_frame, findings.data());
#else
      for (threads::Finding& f : findings) f.verdict = threads::Verdict::out;
#endif
      for (std::size_t k = 0; k < fresh.size(); ++k) {
        all_slept = all_slept && findings[k].verdict != threads::Verdict::unknown &&
                    findings[k].activity == threads::Activity::sleeping && !fresh[k]->is_worker;
        if (findings[k].verdict == threads::Verdict::out) continue;
        gate::mark(fresh[k]->tid, t.generation, gate::other(t.target));
        ++a.left;
      }
    };
    // Those who are known, if they are all: the gates were in place before they were counted (N5). Else
    // until two listings are equal (threads/census.hpp).
    const std::size_t count = census.count();
    look_at_fresh();
    if (all_slept && census.is_all(count)) {
      verdict = {};
      if (a.left == 0) {
        for (const threads::Thread* thread : census.threads()) a.runs.push_back(thread->runs);
        a.of_list = census.changes();
      }
    } else {
      for (int i = 0; i < most_listings; ++i) {
        const std::uint64_t before = census.changes();
        if (Status ok = census.list(); !ok) {
          verdict = ok;
          return;
        }
        if (i > 0 && census.changes() == before) {
          verdict = {};
          break;
        }
        look_at_fresh();
      }
    }
    a.threads = static_cast<unsigned>(census.threads().size());
    if (!verdict) return;
    MOLT_TORTURE_STEP(2000);
    MOLT_TORTURE_UNTIL(gate::g_late_newcomers.load(std::memory_order_seq_cst) != 0, 50);
    gate::seal(t.target);
    take_own_threads_along(t);
  });
  if (!asked) return asked;
  if (!verdict) return verdict;
  Lock lock(engine().mutex);
  t.sealed = true;
  return {};
}

std::vector<gate::ThreadWord> words_of(threads::Census& census) {
  std::vector<gate::ThreadWord> words;
  words.reserve(census.threads().size());
  for (threads::Thread* thread : census.threads()) words.push_back({thread->tid});
  gate::read_words(words);
  return words;
}

// G5, G7, before a reversal: those without a mark are on the side that was aimed at so far.
Status mark_all([[maybe_unused]] const Transition& t) {
  Status verdict;
  Status asked = threads::inspect([&](threads::Census& census) {
    if (verdict = census.refresh(); !verdict) return;
#ifndef MOLT_MUTATE_TURN_UNMARKED
    for (const gate::ThreadWord& word : words_of(census)) {
      if (!word.is_of(t.generation)) gate::mark(word.tid, t.generation, t.target);
    }
#endif
  });
  return asked ? verdict : asked;
}

Attempt attempt(const Transition& t, const threads::RangeSet& ranges, bool may_sample,
                const void* own_frame, int asker, threads::Census& census) {
  Attempt a;
  take_own_threads_along(t);
  const std::vector<gate::ThreadWord> words = words_of(census);
  std::size_t next = 0;
  for (threads::Thread* thread : census.threads()) {
    const gate::ThreadWord& word = words[next++];
    if (is_own_thread(*thread)) continue;
    ++a.threads;
    if (word.state == gate::ThreadWord::read && !word.is_held(t.generation, t.target)) continue;
    threads::Finding finding;
    finding.tid = thread->tid;
    const auto may_leave = [&] {
      if (t.forced) return true;
      finding = threads::look(census, *thread, ranges, thread->tid == asker ? own_frame : nullptr);
      if (may_sample && finding.activity == threads::Activity::running) {
        finding = threads::sample(census, *thread, ranges, sample_ns);
      }
      return finding.verdict == threads::Verdict::out ||
             finding.activity == threads::Activity::gone;
    };
#ifdef MOLT_MUTATE_LATE_GATE
    const bool early = may_leave();
    auto turned = gate::try_switch(thread->tid, t.generation, t.target, [&] { return early; });
#else
    auto turned = gate::try_switch(thread->tid, t.generation, t.target, may_leave);
#endif
    // Without a word of its own nothing stops it at a gate: all that can be said is where it is.
    if (turned == gate::Turned::unreachable && may_leave()) turned = gate::Turned::done;
    if (turned == gate::Turned::gone && gate::exists(thread->tid)) {
      finding.reason = "it is ending";
      turned = gate::Turned::held;
    }
    if (turned == gate::Turned::held || turned == gate::Turned::unreachable) {
      ++a.left;
      a.holders.push_back(finding);
    }
  }
  return a;
}

// Whether all threads but this one have slept since that census: then none was born, and none has passed a
// gate. `traps_open`: whether none of them blocks SIGTRAP.
bool all_slept_since(const Attempt& a, const threads::Census& census, int asker, bool& traps_open) {
  const std::size_t count = census.count();
  const auto& list = census.threads();
  if (a.runs.size() != list.size() || a.of_list != census.changes()) return false;
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (list[i]->tid == asker) continue;
    if (!threads::has_slept_since(*list[i], a.runs[i])) return false;
    traps_open = traps_open && list[i]->traps_open_at == a.runs[i];
  }
  return !list.empty() && census.is_all(count);
}

// G6. False: somebody has come that the last try did not see.
bool close_transition(const Transition& t, const Attempt& a, bool& traps_open) {
  gate::close();
  bool is_held = false;
  traps_open = false;
  Status verdict;
  const int asker = gettid();
  Status asked = threads::inspect([&](threads::Census& census) {
    bool all_open = true;
    if (all_slept_since(a, census, asker, all_open)) {
      traps_open = all_open;
      return;
    }
    if (verdict = census.refresh(); !verdict) return;
    for (const gate::ThreadWord& word : words_of(census)) {
      is_held = is_held || word.is_held(t.generation, t.target);
    }
  });
  if (asked && verdict && !is_held) return true;
  gate::reopen();
  return false;
}

}  // namespace

namespace {
// Async-signal-safe.
void hurry_worker() {
  engine().worker_hurry.store(true, std::memory_order_release);
  announce();
}
}  // namespace

bool try_complete(bool may_sample) {
  Engine& e = engine();
  Transition& t = e.transition;
  if (!is_gated(t) || t.nobody_left) return complete();
  Attempt a;
  const bool is_first = !t.sealed;
  if (is_first) {
    // In the unpatching direction the gates may not have been put in place.
    if (!t.patching()) {
      std::vector<Lead> missing;
      for (const Change& c : t.changes) {
        if (c.gated && c.site->gate == nullptr)
          missing.push_back({c.site, c.unpatched, c.patched, true});
      }
      if (Status ok = lead(missing, t.generation, prologue_patience_ms); !ok) {
        Lock lock(e.mutex);
        t.obstacle = ok.error().detail;
        return false;
      }
    }
    MOLT_TORTURE_STEP(3000);
    if (Status ok = take_census(t, old_code(t), a); !ok) {
      Lock lock(e.mutex);
      t.obstacle = ok.error().detail;
      return false;
    }
    publish_old_code(t);
  }
  Status asked, verdict;
  // Nobody is left over of a census that found everybody out.
  if (!is_first || a.left != 0) {
    const threads::RangeSet ranges = old_code(t);
    change_over_self();
    const void* own_frame = e.own_frame;
    const int asker = gettid();
    asked = threads::inspect([&](threads::Census& census) {
      if (verdict = census.refresh(); !verdict) return;
      a = attempt(t, ranges, may_sample, own_frame, asker, census);
    });
  }
  {
    Lock lock(e.mutex);
    ++t.tries;
    t.obstacle = !asked ? asked.error().detail : !verdict ? verdict.error().detail : "";
    t.threads = a.threads;
    t.left = a.left;
    t.holders = std::move(a.holders);
    if (is_first) {
      // As it began: nobody had been looked at.
      auto& moments = e.history.moments;
      moments.assign(1, Moment{0, t.threads, 0, 0});
      if (!t.patching()) std::swap(moments[0].unpatched, moments[0].patched);
    }
    note_moment(t, blocked_of(t.holders), t.left, t.threads - t.left);
  }
  gate::await_self_checks(t.left, hurry_worker);
  announce();
  bool traps_open = false;
  if (!asked || !verdict || t.left != 0 || !close_transition(t, a, traps_open)) return false;
  if (complete(traps_open)) return true;
  gate::reopen();
  return false;
}

void change_over_self() {
  std::uint32_t generation;
  gate::Side target;
  {
    Lock lock(engine().mutex);
    const Transition& t = engine().transition;
    if (!t.active() || !t.sealed) return;
    generation = t.generation;
    target = t.target;
  }
  if (!gate::is_held_self(generation, target)) return;
  if (!with_old_code(generation, target, false, threads::own_frames_are_out)) return;
  // A reversal changes the target under the lock, before the agent looks at words again.
  Lock lock(engine().mutex);
  const Transition& t = engine().transition;
  if (t.active() && t.generation == generation && t.target == target) {
    gate::leave_self(generation, target);
  }
}

void cancel_transition() {
  Engine& e = engine();
  Transition& t = e.transition;
  say("'%s': canceling patching transition, going to unpatch", t.patch->name.c_str());
  {
    Lock lock(e.mutex);
    t.target = gate::Side::unpatched;
  }
  // Nobody is on the patched side: newcomers start on the other until the census is complete.
  t.nobody_left = true;
  if (!complete()) ensure_worker();
}

Status reverse_transition() {
  Engine& e = engine();
  Transition& t = e.transition;
  if (t.sealed) {
    if (Status ok = mark_all(t); !ok) return ok;
  }
  say("'%s': reversing transition from %s to %s", t.patch->name.c_str(), direction(t.target),
      direction(gate::other(t.target)));
  {
    Lock lock(e.mutex);
    t.target = gate::other(t.target);
    t.holders.clear();
  }
  if (!t.sealed) {
    // Before the census is complete nobody leaves the side that is aimed at now.
    t.nobody_left = true;
  } else {
    gate::turn(t.target);
    publish_old_code(t);
  }
  start_transition();
  return {};
}

// --- the thread that goes on trying ---------------------------------------------------------------------

namespace {

void poke_holders() {
  Engine& e = engine();
  void (*poke)(int) = nullptr;
  std::vector<int> tids;
  bool first = false;
  {
    Lock lock(e.mutex);
    Transition& t = e.transition;
    if (!t.active() || e.poke == nullptr) return;
    if (now_ns() - t.began_ns < poke_every_ns * (t.pokes + 1)) return;
    ++t.pokes;
    poke = e.poke;
    first = !t.said_signaling;
    t.said_signaling = true;
    for (const threads::Finding& f : t.holders) tids.push_back(f.tid);
  }
  if (first) say("signaling remaining tasks");
  for (int tid : tids) poke(tid);
}

void straighten_sites() {
  Engine& e = engine();
  {
    Lock lock(e.mutex);
    if (e.straighten_tries == 0) return;
  }
  const bool all_done = straighten();
  Lock lock(e.mutex);
  e.straighten_tries = all_done ? 0 : e.straighten_tries - 1;
}

void* work(void*) {
  Engine& e = engine();
  {
    Lock lock(e.mutex);
    e.worker_tid = gettid();
  }
  std::int64_t pause_ms = first_retry_ms, working_on = -1;
  for (;;) {
    Deadline until = Deadline::in_ms(pause_ms);
    // Until it is time, somebody is in a hurry, or there is another transition.
    for (;;) {
      const std::uint32_t seen = e.changes.load(std::memory_order_acquire);
      {
        Lock lock(e.mutex);
        const bool is_active = e.transition.active();
        const bool idle =
            !is_active && e.pinned.empty() && !e.uncollected && e.straighten_tries == 0;
        if (idle || e.worker_shall_end || !operable()) {
          e.worker = e.worker_shall_end = false;
          e.worker_tid = 0;
          announce();
          return nullptr;
        }
        const std::int64_t began_ns = is_active ? e.transition.began_ns : 0;
        if (std::exchange(working_on, began_ns) != began_ns) {
          pause_ms = is_active ? first_retry_ms : finish_after_ms;
          until = Deadline::in_ms(pause_ms);
        }
      }
      if (e.worker_hurry.exchange(false, std::memory_order_acq_rel)) {
        pause_ms = first_retry_ms;
        break;
      }
      if (until.passed()) break;
      futex_wait(e.changes, seen, until);
    }
    {
      Token token(__builtin_frame_address(0));
      const DescriptorRoom room;
      if (token && e.transition.active()) {
        try_complete(e.transition.tries >= tries_before_sampling);
      } else if (token) {
        collect();
        straighten_sites();
      }
      if (token) collect_pinned();
    }
    poke_holders();
    pause_ms = working_on > 0 ? std::min(pause_ms * 2, longest_retry_ms) : slow_retry_ms;
  }
}

}  // namespace

void stop_worker() {
  Engine& e = engine();
  {
    Lock lock(e.mutex);
    e.worker_shall_end = e.worker;
  }
  announce();
  for (;;) {
    const std::uint32_t seen = e.changes.load(std::memory_order_acquire);
    {
      Lock lock(e.mutex);
      if (!e.worker) return;
    }
    futex_wait(e.changes, seen, Deadline());
  }
}

void ensure_worker() {
  Engine& e = engine();
  {
    Lock lock(e.mutex);
    if (e.worker) return;
    e.worker = true;
  }
  if (auto started = threads::start_thread("molt-patch", threads::default_stack, work, nullptr)) {
    pthread_detach(*started);
    return;
  }
  say("no thread could be started that goes on trying; `molt wait` does");
  Lock lock(e.mutex);
  e.worker = false;
}

}  // namespace molt::livepatch
