#include "hook/registry.hpp"

#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "arch/x86_64/percpu.hpp"
#include "base/barrier.hpp"
#include "base/poison.hpp"
#include "base/torture_step.hpp"
#include "hook/internal.hpp"
#include "threads/procfs.hpp"
#include "threads/record.hpp"

namespace molt::hooks {

Owner paused;

// Leaked on purpose: the host's static destructors may still call hooks.
Registry& registry() {
  static Registry* r = new Registry;
  return *r;
}

namespace {

Owner* g_free_owners = nullptr;

molt_hook_core* find_core(std::string_view name) {
  for (molt_hook_core* core : registry().hooks) {
    if (core->name == name) return core;
  }
  return nullptr;
}

Lineage* lineage_named(std::string_view name) {
  for (Lineage* l : registry().lineages) {
    if (l->name == name) return l;
  }
  auto* l = new Lineage;
  l->name = name;
  registry().lineages.push_back(l);
  return l;
}

// Asked for once: the C library opens a file for it.
std::size_t processors() {
  static const auto count = static_cast<std::size_t>(std::max(1L, sysconf(_SC_NPROCESSORS_CONF)));
  return count;
}

std::uint64_t* new_cells() {
  const std::size_t cpus = processors();
  void* cells = aligned_alloc(arch::percpu_stride, cpus * arch::percpu_stride);
  if (cells != nullptr) std::memset(cells, 0, cpus * arch::percpu_stride);
  return static_cast<std::uint64_t*>(cells);
}

std::uint64_t sum_cells(const std::uint64_t* cells) {
  const std::size_t cpus = processors();
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < cpus; ++i) {
    sum += __atomic_load_n(cells + i * (arch::percpu_stride / sizeof *cells), __ATOMIC_ACQUIRE);
  }
  return sum;
}

Lineage* lineage_of(const Owner* owner) { return owner->lineage.load(std::memory_order_relaxed); }

// Whether the owner's callbacks belong into chains now.
bool present(const Owner* owner) {
  const Lineage* l = lineage_of(owner);
  const Owner* current = l->current.load(std::memory_order_relaxed);
  return current == owner ||
         (current == &paused && l->paused_from.load(std::memory_order_relaxed) == owner);
}

struct Candidate {
  int order;
  std::size_t listed;  // position in the user's list; SIZE_MAX if not in it
  std::uint64_t load_sequence;
  unsigned sequence;
  molt_entry entry;
  auto key() const { return std::tuple(order, listed, load_sequence, sequence); }
};

// The entries of `hook` in calling order as they are once `to` is in force instead of `from`.
std::vector<Candidate> entries_of(const molt_hook_core* hook, const Owner* from, const Owner* to) {
  const Order& order = hook->order.given ? hook->order : registry().order;
  std::vector<Candidate> out;
  for (Owner* owner : registry().attached) {
    if (owner != to && (owner == from || !present(owner))) continue;
    std::size_t listed = SIZE_MAX;
    if (order.given) {
      auto at = std::find(order.modules.begin(), order.modules.end(), lineage_of(owner)->name);
      if (at != order.modules.end()) listed = static_cast<std::size_t>(at - order.modules.begin());
    }
    for (const Attachment& a : *owner->attachments) {
      if (a.hook != hook) continue;
      out.push_back({a.order, listed, owner->load_sequence, a.sequence, {a.fn, owner}});
    }
  }
  // Stable: callbacks of one module that tie stay in the order of their ordinals.
  std::stable_sort(out.begin(), out.end(),
                   [](const Candidate& a, const Candidate& b) { return a.key() < b.key(); });
  return out;
}

void no_callback() {}

// Of no module, and never in force. A chain that names it is never open (I2), and the walk skips it.
Owner* absent() {
  static Owner* owner = [] {
    auto* made = new Owner;
    made->lineage.store(new Lineage, std::memory_order_relaxed);
    return made;
  }();
  return owner;
}

// A chain with these entries, and the one of call_in(); *chain stays null for none. False: no memory.
bool make_chain(molt_hook_core* hook, std::vector<Candidate> entries, molt_chain** chain) {
  if (registry().calling_in) entries.push_back({0, SIZE_MAX, 0, 0, {no_callback, absent()}});
  if (entries.empty()) return true;
  molt_chain* c = new_chain(hook, entries.size());
  if (c == nullptr) return false;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    __atomic_store_n(&c->entries[i].owner, entries[i].entry.owner, __ATOMIC_RELAXED);
    __atomic_store_n(&c->entries[i].fn, entries[i].entry.fn, __ATOMIC_RELEASE);
    ++entries[i].entry.owner->chain_refs;
  }
  __atomic_store_n(&c->entries[entries.size()].fn, nullptr, __ATOMIC_RELEASE);
  seal_chain(c);
  *chain = c;
  return true;
}

void store_gen(molt_hook_core* hook, std::uint64_t gen) {
  hook->gen = gen;
  for (molt_hook* h : hook->instances) __atomic_store_n(&h->gen, gen, __ATOMIC_SEQ_CST);
}

// From now on every caller of the hook validates what it calls against Lineage::current.
void close(molt_hook_core* hook) { store_gen(hook, gen_closed); }

void publish(molt_hook_core* hook, molt_chain* chain) {
  molt_chain* old = hook->chain;
  hook->chain = chain;
  for (molt_hook* h : hook->instances) __atomic_store_n(&h->chain, chain, __ATOMIC_SEQ_CST);
  if (old != nullptr) retire_chain(old);
}

// I2: only where nothing in the chain is paused.
void open(molt_hook_core* hook) {
  if (hook->chain == nullptr) {
    store_gen(hook, registry().next_gen++);
    return;
  }
  if (!registry().gens_open) return;
  for (std::uint32_t i = 0; i < hook->chain->count; ++i) {
    const Lineage* l = lineage_of(hook->chain->entries[i].owner);
    if (l->current.load(std::memory_order_relaxed) != hook->chain->entries[i].owner) return;
  }
  store_gen(hook, hook->chain->gen);
}

// Lets the callers go on that wait for the end of a pause; after Lineage::current was stored.
void end_waiting(Lineage* lineage) {
  lineage->paused_from.store(nullptr, std::memory_order_release);
  lineage->pause_word.fetch_add(1, std::memory_order_release);
  futex_wake_all(lineage->pause_word);
}

std::vector<molt_hook_core*> hooks_of(const Owner* a, const Owner* b) {
  std::vector<molt_hook_core*> hooks;
  for (const Owner* owner : {a, b}) {
    if (owner == nullptr) continue;
    for (const Attachment& attachment : *owner->attachments) hooks.push_back(attachment.hook);
  }
  std::sort(hooks.begin(), hooks.end());
  hooks.erase(std::unique(hooks.begin(), hooks.end()), hooks.end());
  return hooks;
}

std::size_t callbacks_on(const Owner* owner, const molt_hook_core* hook) {
  if (owner == nullptr) return 0;
  return static_cast<std::size_t>(
      std::count_if(owner->attachments->begin(), owner->attachments->end(),
                    [&](const Attachment& a) { return a.hook == hook; }));
}

Status signature_matches(const molt_callback& callback, const molt_hook_core& core) {
  std::uint64_t wanted =
      callback.fingerprint ? callback.fingerprint : molt_fingerprint(callback.signature);
  if (wanted == core.fingerprint) return {};
  return fail(EINVAL, "hook %s: the module expects %s, the host has %s; rebuild the module",
              callback.hook, callback.signature, core.signature.c_str());
}

const char* rule_text(std::uint32_t rule) {
  constexpr const char* names[] = {"all", "first", "unanimous", "last", "only_first", "by_name"};
  return rule < std::size(names) ? names[rule] : "?";
}

HookInfo describe(const molt_hook_core* core) {
  HookInfo info;
  info.name = core->name;
  info.signature = core->signature;
  info.description = core->description;
  info.rule = rule_text(core->rule);
  info.on_exception = core->on_exception == MOLT_FAIL_CLOSED ? "fail-closed" : "fail-open";
  info.fingerprint = core->fingerprint;
  info.order = core->order.given ? core->order : registry().order;
  for (const Candidate& c : entries_of(core, nullptr, nullptr)) {
    info.callbacks.push_back({lineage_of(c.entry.owner)->name, c.order});
  }
  return info;
}

bool is_attached_locked(const molt_hook_core* core) {
  const auto& all = registry().attached;
  return std::any_of(all.begin(), all.end(),
                     [&](const Owner* owner) { return callbacks_on(owner, core) > 0; });
}

// Those on functions (interpose/) are there for ever, and are hooks only while somebody uses them.
bool is_shown(const molt_hook_core* core) {
  if (core->instances.empty()) return false;
  return core->name.find(':') == std::string::npos || is_attached_locked(core);
}

Status rebuild(molt_hook_core* hook) {
  molt_chain* chain = nullptr;
  if (!make_chain(hook, entries_of(hook, nullptr, nullptr), &chain)) {
    return fail(ENOMEM, "hook %s: no memory for its chain", hook->name.c_str());
  }
  publish(hook, chain);
  close(hook);
  open(hook);
  return {};
}

}  // namespace

void release_owner_if_unused(Owner* owner) {
  if (!owner->destroyed || owner->chain_refs != 0) return;
  owner->destroyed = false;
  owner->next_free = g_free_owners;
  g_free_owners = owner;
}

Status check(const molt_callback* begin, const molt_callback* end) {
  std::lock_guard lock(registry().mutex);
  for (const molt_callback* c = begin; c != end; ++c) {
    const molt_hook_core* core = find_core(c->hook);
    if (core == nullptr || core->instances.empty()) {
      if (c->flags & MOLT_OPTIONAL) continue;
      return fail(ENOENT, "Unknown hook %s (err -2)", c->hook);
    }
    if (Status ok = signature_matches(*c, *core); !ok) return ok;
  }
  return {};
}

Result<Owner*> create(std::string_view name, molt_callback* begin, molt_callback* end) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  Owner* owner = g_free_owners;
  if (owner != nullptr) {
    g_free_owners = owner->next_free;
  } else {
    owner = new Owner;
    owner->began = new_cells();
    owner->ended = new_cells();
    if (owner->began == nullptr || owner->ended == nullptr) {
      free(owner->began);
      free(owner->ended);
      delete owner;
      return fail(ENOMEM, "no memory for per-CPU counters");
    }
    r.owners.push_back(owner);
  }
  auto* attachments = new std::vector<Attachment>;
  for (molt_callback* c = begin; c != end; ++c) {
    molt_hook_core* core = find_core(c->hook);
    if (core == nullptr || core->instances.empty()) continue;  // optional: check() saw to it
    if (!signature_matches(*c, *core)) continue;
    c->bound = core->info;
    attachments->push_back({core, c, c->fn, c->order, c->sequence, 0});
  }
  // Ordinals in calling order, which for one module is (order, sequence).
  std::stable_sort(attachments->begin(), attachments->end(),
                   [](const Attachment& a, const Attachment& b) {
                     return std::tuple(a.order, a.sequence) < std::tuple(b.order, b.sequence);
                   });
  for (auto a = attachments->begin(); a != attachments->end(); ++a) {
    a->ordinal = static_cast<unsigned>(std::count_if(
        attachments->begin(), a, [&](const Attachment& other) { return other.hook == a->hook; }));
  }
  owner->attachments = attachments;
  owner->counted.store(false, std::memory_order_relaxed);
  owner->drained.store(true, std::memory_order_relaxed);
  owner->load_sequence = r.next_load_sequence++;
  owner->lineage.store(lineage_named(name), std::memory_order_release);
  r.attached.push_back(owner);
  return owner;
}

void for_memory_naming(const Owner* owner, const void* begin, const void* end,
                       const std::function<void(const void*, std::size_t)>& f) {
  std::lock_guard lock(registry().mutex);
  if (owner != nullptr && owner->attachments != nullptr) {
    f(owner->attachments->data(), owner->attachments->capacity() * sizeof(Attachment));
  }
  auto is_inside = [&](const void* p) { return !std::less<>()(p, begin) && std::less<>()(p, end); };
  for (molt_hook_core* core : registry().hooks) {
    f(core->instances.data() + core->instances.size(),
      (core->instances.capacity() - core->instances.size()) * sizeof(molt_hook*));
    for (molt_hook* const& instance : core->instances) {
      if (is_inside(instance)) f(&instance, sizeof instance);
    }
    if (!is_inside(core->info)) continue;
    f(&core->info, sizeof core->info);
    for (const Owner* other : registry().attached) {
      for (const Attachment& a : *other->attachments) {
        if (a.hook == core) f(&a.callback->bound, sizeof a.callback->bound);
      }
    }
  }
}

void destroy(Owner* owner) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  r.attached.erase(std::find(r.attached.begin(), r.attached.end(), owner));
  delete owner->attachments;
  owner->attachments = nullptr;
  owner->destroyed = true;
  release_owner_if_unused(owner);
}

Status change(Owner* from, Owner* to) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  Lineage* lineage = lineage_of(from ? from : to);
  if (from != nullptr && to != nullptr) to->load_sequence = from->load_sequence;

  std::vector<molt_hook_core*> hooks = hooks_of(from, to);
  std::vector<molt_chain*> chains(hooks.size(), nullptr);
  for (std::size_t i = 0; i < hooks.size(); ++i) {
    if (make_chain(hooks[i], entries_of(hooks[i], from, to), &chains[i])) continue;
    for (molt_chain* chain : chains) {
      if (chain != nullptr) retire_chain(chain);
    }
    return fail(ENOMEM, "no memory for the chains of %zu hooks", hooks.size());
  }

#ifndef MOLT_MUTATE_SWITCH_OPEN
  for (molt_hook_core* hook : hooks) close(hook);
#endif
  // Before the switch a chain must name every callback of `from`, and at the switch every one of
  // `to`: whichever chain has more entries of this lineage stands while `current` changes.
  auto grows = [&](molt_hook_core* hook) {
    return callbacks_on(to, hook) >= callbacks_on(from, hook);
  };
  for (std::size_t i = 0; i < hooks.size(); ++i) {
    if (grows(hooks[i])) publish(hooks[i], chains[i]);
#ifdef MOLT_MUTATE_SWITCH_OPEN
    if (grows(hooks[i])) store_gen(hooks[i], chains[i] ? chains[i]->gen : 1);
#endif
    MOLT_TORTURE_STEP(500);  // one hook leads to the new version, the next does not
  }
  // The switch.
  if (to != nullptr) to->drained.store(false, std::memory_order_relaxed);
  lineage->current.store(to, std::memory_order_seq_cst);
  if (lineage->paused_from.load(std::memory_order_relaxed) != nullptr) end_waiting(lineage);
  for (std::size_t i = 0; i < hooks.size(); ++i) {
    if (!grows(hooks[i])) publish(hooks[i], chains[i]);
    open(hooks[i]);
  }
  heavy_barrier();
  reclaim_chains();
  return {};
}

void revoke(Owner* owner) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  for (molt_hook_core* hook : hooks_of(owner, nullptr)) close(hook);
  Lineage* lineage = lineage_of(owner);
  lineage->current.store(nullptr, std::memory_order_seq_cst);
  heavy_barrier();
}

bool in_force(const Owner* owner) {
  return lineage_of(owner)->current.load(std::memory_order_acquire) == owner;
}

bool has_callbacks(const Owner* owner) {
  return owner->attachments != nullptr && !owner->attachments->empty();
}

void begin_pause(Owner* owner) {
  std::lock_guard lock(registry().mutex);
  for (molt_hook_core* hook : hooks_of(owner, nullptr)) close(hook);
  Lineage* lineage = lineage_of(owner);
  lineage->paused_from.store(owner, std::memory_order_release);
  lineage->paused_by.store(gettid(), std::memory_order_release);
  lineage->sealed.store(false, std::memory_order_release);
  lineage->current.store(&paused, std::memory_order_seq_cst);
  heavy_barrier();
}

void end_pause(Owner* owner) {
  std::lock_guard lock(registry().mutex);
  Lineage* lineage = lineage_of(owner);
  if (lineage->current.load(std::memory_order_relaxed) != &paused) return;
  lineage->current.store(owner, std::memory_order_seq_cst);
  end_waiting(lineage);
  for (molt_hook_core* hook : hooks_of(owner, nullptr)) open(hook);
}

int held_up(const Owner* owner) {
  return lineage_of(owner)->held_up.load(std::memory_order_relaxed);
}

namespace {

// One look at everything that can show a thread inside.
bool shows_inside(const Owner* owner) {
  bool inside = false;
  threads::for_each_frame([&](const molt_entry* entry, int) {
    inside |= __atomic_load_n(&entry->owner, __ATOMIC_ACQUIRE) == owner;
  });
  if (inside) return true;
  if (!owner->counted.load(std::memory_order_acquire)) return false;
  // The order matters: async.cpp.
  std::uint64_t ended = sum_cells(owner->ended);
  heavy_barrier();
  return sum_cells(owner->began) != ended;
}

}  // namespace

bool entered(Owner* owner) {
#ifdef MOLT_MUTATE_NO_DRAIN
  return false;
#endif
  if (owner->drained.load(std::memory_order_acquire)) return false;
  bool out_of_force = !present(owner);
  if (shows_inside(owner)) return true;
  if (out_of_force) owner->drained.store(true, std::memory_order_release);
  return false;
}

namespace {

// The second phase of a pause. While it drains, threads that are inside may go on entering; once it
// has, nobody may, whatever frames it shows: those are of walks that are not validated yet. False: a
// thread came in before it could know; the pause drains again.
bool seal(Owner* owner) {
  Lineage* lineage = lineage_of(owner);
  if (lineage->current.load(std::memory_order_acquire) != &paused) return true;
  lineage->sealed.store(true, std::memory_order_seq_cst);
  heavy_barrier();
  if (!entered(owner)) return true;
  lineage->sealed.store(false, std::memory_order_seq_cst);
  lineage->pause_word.fetch_add(1, std::memory_order_release);
  futex_wake_all(lineage->pause_word);
  return false;
}

}  // namespace

bool drain(Owner* owner, Deadline deadline, const Cancelled& cancelled,
           std::vector<Inside>& inside) {
  // No barrier here: whatever took the owner out of force (change, revoke, begin_pause) ended with
  // one, so whoever got in before shows a frame, and nobody gets in now.
  for (unsigned round = 0;; ++round) {
    if (!entered(owner) && seal(owner)) return true;
    if (round < 200) {
      __builtin_ia32_pause();
      continue;
    }
    if (deadline.passed() || (cancelled && cancelled())) break;
    // Threads that died with a frame set (see threads/record.hpp) are found now and then.
    if (round % 64 == 0) threads::reap_dead();
    timespec nap{0, round < 400 ? 20'000 : 500'000};
    nanosleep(&nap, nullptr);
  }
  inside = who_is_inside(owner);
  if (inside.empty()) inside.push_back({});
  return false;
}

std::vector<Inside> who_is_inside(Owner* owner) {
  std::vector<Inside> inside;
  if (!entered(owner)) return inside;
  std::lock_guard lock(registry().mutex);
  // A walk's second frame names the module only; the hook is that of the chain below it.
  const molt_hook_core* hook = nullptr;
  threads::for_each_frame([&](const molt_entry* entry, int tid) {
    if (const molt_hook_core* here = hook_of(entry)) hook = here;
    if (__atomic_load_n(&entry->owner, __ATOMIC_ACQUIRE) != owner) return;
    inside.push_back({tid, threads::thread_name(tid), hook ? hook->name : ""});
  });
  return inside;
}

void call_in(bool on) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  r.calling_in = on;
  for (molt_hook_core* core : r.hooks) {
    if (!core->instances.empty()) (void)rebuild(core);
  }
  heavy_barrier();
  reclaim_chains();
}

Status set_order(std::string_view name, const Order& order) {
  if (Status ok = operable(); !ok) return ok;
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  Order clean = order;
  clean.modules.clear();
  for (const std::string& module : order.modules) {
    if (std::find(clean.modules.begin(), clean.modules.end(), module) == clean.modules.end()) {
      clean.modules.push_back(module);
    }
  }
  if (name.empty()) {
    r.order = clean;
    for (molt_hook_core* core : r.hooks) core->order = {};
    for (molt_hook_core* core : r.hooks) {
      if (Status ok = rebuild(core); !ok) return ok;
    }
  } else {
    molt_hook_core* core = find_core(name);
    if (core == nullptr) {
      return fail(ENOENT, "no hook %.*s; see `molt hook list`", static_cast<int>(name.size()),
                  name.data());
    }
    // A hook of its own mind: with no list, load order, whatever the order for all hooks is.
    core->order = clean;
    core->order.given = true;
    if (Status ok = rebuild(core); !ok) return ok;
  }
  heavy_barrier();
  reclaim_chains();
  return {};
}

std::vector<HookInfo> list() {
  std::lock_guard lock(registry().mutex);
  std::vector<HookInfo> out;
  for (const molt_hook_core* core : registry().hooks) {
    if (is_shown(core)) out.push_back(describe(core));
  }
  std::sort(out.begin(), out.end(),
            [](const HookInfo& a, const HookInfo& b) { return a.name < b.name; });
  return out;
}

Result<HookInfo> find(std::string_view name) {
  std::lock_guard lock(registry().mutex);
  const molt_hook_core* core = find_core(name);
  if (core == nullptr || !is_shown(core)) {
    return fail(ENOENT, "no hook %.*s; see `molt hook list`", static_cast<int>(name.size()),
                name.data());
  }
  return describe(core);
}

std::size_t count() {
  std::lock_guard lock(registry().mutex);
  return static_cast<std::size_t>(
      std::count_if(registry().hooks.begin(), registry().hooks.end(),
                    [](const molt_hook_core* core) { return is_shown(core); }));
}

bool is_attached(std::string_view name) {
  std::lock_guard lock(registry().mutex);
  const molt_hook_core* core = find_core(name);
  return core != nullptr && is_attached_locked(core);
}

void before_fork() { registry().mutex.lock(); }

void after_fork(bool child) {
  Registry& r = registry();
  if (child) {
    threads::after_fork_child();
    barrier_setup();
    // A hand-over by a thread that the child does not have: the old version goes on.
    for (Lineage* lineage : r.lineages) {
      lineage->held_up.store(0, std::memory_order_relaxed);
      if (lineage->current.load(std::memory_order_relaxed) != &paused) continue;
      Owner* from = lineage->paused_from.load(std::memory_order_relaxed);
      lineage->current.store(from, std::memory_order_seq_cst);
      end_waiting(lineage);
      for (molt_hook_core* hook : hooks_of(from, nullptr)) open(hook);
    }
    // Nor the one that calls others in.
    if (r.calling_in) {
      r.calling_in = false;
      for (molt_hook_core* hook : r.hooks) (void)rebuild(hook);
    }
    // Counts of asynchronous callbacks stay: one that is suspended may be resumed in the child. Those
    // of other threads keep their module there for ever; nobody could prove that they are gone.
  }
  r.mutex.unlock();
}

}  // namespace molt::hooks

using namespace molt::hooks;

extern "C" std::uint64_t molt_fingerprint(const char* signature) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (; *signature; ++signature) {
    if (*signature == ' ') continue;
    hash = (hash ^ static_cast<unsigned char>(*signature)) * 0x100000001b3u;
  }
  return hash;
}

extern "C" int molt_hook_register(molt_hook* hook) {
  const molt_hook_info* info = hook != nullptr ? hook->info : nullptr;
  if (info == nullptr || info->size != sizeof(molt_hook_info) || info->name == nullptr ||
      info->signature == nullptr || info->name[0] == '\0' ||
      info->fingerprint != molt_fingerprint(info->signature)) {
    return -EINVAL;
  }
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  r.gens_open = molt::barrier_asymmetric();
  molt_hook_core* core = find_core(info->name);
  if (core == nullptr) {
    core = new molt_hook_core;
    core->name = info->name;
    r.hooks.push_back(core);
  } else if (core->fingerprint != info->fingerprint &&
             (!core->instances.empty() || core->chain != nullptr)) {
    return -EEXIST;
  }
  if (core->instances.empty()) {
    core->signature = info->signature;
    core->description = info->description ? info->description : "";
    core->fingerprint = info->fingerprint;
    core->rule = info->combine;
    core->on_exception = info->on_exception;
    core->info = info;
    // The host took the hook away and brings it again: callbacks find their results there now.
    for (Owner* owner : r.attached) {
      for (Attachment& a : *owner->attachments) {
        if (a.hook == core) a.callback->bound = info;
      }
    }
  }
  core->instances.push_back(hook);
  hook->core = core;
  __atomic_store_n(&hook->gen, core->gen, __ATOMIC_SEQ_CST);
  __atomic_store_n(&hook->chain, core->chain, __ATOMIC_SEQ_CST);
  return 0;
}

extern "C" void molt_hook_unregister(molt_hook* hook) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  molt_hook_core* core = hook != nullptr ? hook->core : nullptr;
  if (core == nullptr) return;
  core->instances.erase(std::remove(core->instances.begin(), core->instances.end(), hook),
                        core->instances.end());
  __atomic_store_n(&hook->chain, nullptr, __ATOMIC_SEQ_CST);
  hook->core = nullptr;
}
