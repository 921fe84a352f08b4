// walk.cpp - the general walk over a chain: what C hosts call, and where callers go when the chain
// that they run through is being changed.
//
// It never looks at generations. The chain is held by a frame that points at its head; the module
// by a second frame that points at the module's own entry; and what may be called is asked of
// Lineage::current each time (I4). Both frames are hazard pointers: store, full fence, look again.
// An invocation sees one snapshot of the chain: whatever is attached throughout is called exactly
// once, in the snapshot's order, by the version in force at that moment.

#include <sched.h>
#include <unistd.h>

#include <cstring>

#include "hook/internal.hpp"
#include "threads/record.hpp"
#include "threads/self_proof.hpp"

namespace molt::hooks {
namespace {

enum WalkFlags : std::uint32_t {
  chain_extended = 1,  // the frame came from molt_frame_extend()
  call_extended = 2,
};

const molt_entry** push(molt_walk* walk, std::uint32_t flag) {
  molt_tls& tls = molt_tls_self;
  const molt_entry** frame = tls.top;
  if (frame == tls.end) {
    walk->flags |= flag;
    return molt_frame_extend();
  }
  tls.top = frame + 1;
  return frame;
}

void pop(molt_walk* walk, const molt_entry** frame, std::uint32_t flag) {
  if (walk->flags & flag) {
    molt_frame_retract(frame);
    return;
  }
  __atomic_store_n(frame, nullptr, __ATOMIC_RELEASE);
  molt_tls_self.top = frame;
}

void publish(const molt_entry** frame, const molt_entry* entry) {
#ifdef MOLT_MUTATE_NO_FENCE
  __atomic_store_n(frame, entry, __ATOMIC_RELAXED);
#else
  (void)__atomic_exchange_n(frame, entry, __ATOMIC_SEQ_CST);
#endif
}

bool own_frame_inside(const Owner* owner) {
  bool inside = false;
  threads::for_own_frames([&](const molt_entry* entry) {
    inside |= __atomic_load_n(&entry->owner, __ATOMIC_RELAXED) == owner;
  });
  return inside;
}

// The version of `lineage` to call now, held by `frame`; null if none.
Owner* enter(Lineage* lineage, const molt_entry** frame) {
  HeldUp held(lineage);
  for (;;) {
    std::uint32_t word = lineage->pause_word.load(std::memory_order_acquire);
    Owner* current = lineage->current.load(std::memory_order_acquire);
    if (current == nullptr) return nullptr;
    if (current == &paused) {
      Owner* from = lineage->paused_from.load(std::memory_order_acquire);
      Meeting meeting = meet_pause(lineage, from);
      if (meeting == Meeting::skip) return nullptr;
      if (meeting == Meeting::join) {
        publish(frame, &from->self);
        if (joined_in_time(lineage, from)) return from;
        __atomic_store_n(frame, nullptr, __ATOMIC_RELEASE);
        continue;
      }
      // Holds nothing while it waits, not even the module of the callback before.
      __atomic_store_n(frame, nullptr, __ATOMIC_RELEASE);
      held.wait(word);
      continue;
    }
    publish(frame, &current->self);
    if (lineage->current.load(std::memory_order_seq_cst) == current) return current;
    // Not validated: it must not hold anyone up, nor pass for being inside (KEEP_CALL_FRAME).
    __atomic_store_n(frame, nullptr, __ATOMIC_RELEASE);
  }
}

}  // namespace

const Attachment* find_attachment(const Owner* owner, const molt_hook_core* hook,
                                  unsigned ordinal) {
  if (owner->attachments == nullptr) return nullptr;
  for (const Attachment& a : *owner->attachments) {
    if (a.hook == hook && a.ordinal == ordinal) return &a;
  }
  return nullptr;
}

bool self_inside(const Owner* owner) { return own_frame_inside(owner); }

Meeting meet_pause(const Lineage* lineage, const Owner* from) {
  // The thread that hands over calls hooks from save() or restore(): waiting for itself would never
  // end.
  if (lineage->paused_by.load(std::memory_order_relaxed) == gettid()) return Meeting::skip;
  // This thread's outer frame keeps `from` alive, and the pause waits for that frame to go. A frame
  // proves that only until the drain is complete: after it, it is one that a signal handler finds
  // unvalidated (tests/models/replace.pml, SIGNALS).
  if (from != nullptr && !lineage->sealed.load(std::memory_order_acquire) &&
      own_frame_inside(from)) {
    return Meeting::join;
  }
  return Meeting::wait;
}

bool joined_in_time(const Lineage* lineage, const Owner* from) {
  return !lineage->sealed.load(std::memory_order_seq_cst) &&
         lineage->current.load(std::memory_order_seq_cst) == &paused &&
         lineage->paused_from.load(std::memory_order_seq_cst) == from;
}

void HeldUp::wait(std::uint32_t seen) {
  if (!counted_) lineage_->held_up.fetch_add(1, std::memory_order_relaxed);
  counted_ = true;
  futex_wait(lineage_->pause_word, seen);
}

HeldUp::~HeldUp() {
  if (counted_) lineage_->held_up.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace molt::hooks

using namespace molt::hooks;

extern "C" void molt_walk_begin(molt_walk* walk, molt_hook* hook) {
  *walk = {hook, nullptr, nullptr, nullptr, nullptr, 0, 0};
  walk->chain_frame = push(walk, chain_extended);
  molt::threads::pass();
  for (;;) {
    const molt_chain* chain = __atomic_load_n(&hook->chain, __ATOMIC_ACQUIRE);
    if (chain == nullptr) break;
    publish(walk->chain_frame, &chain->head);
    if (__atomic_load_n(&hook->chain, __ATOMIC_SEQ_CST) == chain) {
      walk->chain = chain;
      break;
    }
  }
  walk->call_frame = push(walk, call_extended);
}

extern "C" void molt_walk_begin_named(molt_walk* walk, molt_hook* hook, const char* module) {
  molt_walk_begin(walk, hook);
  walk->only_module = module;
}

extern "C" void molt_walk_resume(molt_walk* walk, molt_hook* hook, const molt_chain* chain,
                                 std::uint32_t next) {
  // The caller's frame points at the entry that failed its validation: it must not claim that
  // module, least of all to this thread itself (enter()). Before the first validation it does not
  // hold the chain either; after it, it goes on doing so.
  const molt_entry** frame = molt_tls_self.top - 1;
  if (next == 0) {
    __atomic_store_n(frame, nullptr, __ATOMIC_RELEASE);
    molt_walk_begin(walk, hook);
    return;
  }
  *walk = {hook, chain, nullptr, nullptr, nullptr, next, 0};
  __atomic_store_n(frame, &chain->head, __ATOMIC_RELEASE);
  walk->call_frame = push(walk, call_extended);
}

extern "C" molt_fn molt_walk_next(molt_walk* walk) {
  const molt_chain* chain = walk->chain;
  if (chain == nullptr) return nullptr;
  while (walk->next < chain->count) {
    std::uint32_t index = walk->next++;
    // Holding the chain keeps its owners' records, and a record keeps its lineage.
    Lineage* lineage = chain->entries[index].owner->lineage.load(std::memory_order_acquire);
    if (walk->only_module != nullptr && lineage->name != walk->only_module) continue;
    unsigned ordinal = 0;
    for (std::uint32_t i = 0; i < index; ++i) {
      ordinal += chain->entries[i].owner->lineage.load(std::memory_order_relaxed) == lineage;
    }
    Owner* owner = enter(lineage, walk->call_frame);
    if (owner == nullptr) continue;
    if (const Attachment* found = find_attachment(owner, walk->hook->core, ordinal)) {
      return found->fn;
    }
    __atomic_store_n(walk->call_frame, nullptr, __ATOMIC_RELEASE);
  }
  return nullptr;
}

extern "C" void molt_walk_end(molt_walk* walk) {
  pop(walk, walk->call_frame, call_extended);
  if (walk->chain_frame != nullptr) pop(walk, walk->chain_frame, chain_extended);
}
