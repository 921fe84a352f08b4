// async.cpp - walks whose callbacks may end on another thread than they began on.
//
// The thread's record cannot hold the module then. Instead each version counts, per CPU, callbacks
// begun and ended; it is empty when the sums agree, read in the order: ended, heavy barrier, begun
// (the other order misses one that moves; FACTS and tests/models/rseq.pml). Nothing holds the chain
// between two callbacks: the walk takes a copy of what it names at its beginning.

#include <stdlib.h>

#include "arch/x86_64/percpu.hpp"
#include "base/barrier.hpp"
#include "hook/internal.hpp"

namespace molt::hooks {
namespace {

struct Step {
  Lineage* lineage;
  unsigned ordinal;
};

void begin(Owner* owner) {
  owner->counted.store(true, std::memory_order_relaxed);
  arch::percpu_increment(owner->began);
  full_fence();
}

// Begins a callback in the version in force; null if there is none.
Owner* enter(Lineage* lineage) {
  HeldUp held(lineage);
  for (;;) {
    std::uint32_t word = lineage->pause_word.load(std::memory_order_acquire);
    Owner* current = lineage->current.load(std::memory_order_acquire);
    if (current == nullptr) return nullptr;
    if (current == &paused) {
      Owner* from = lineage->paused_from.load(std::memory_order_acquire);
      Meeting meeting = meet_pause(lineage, from);
      if (meeting == Meeting::skip) return nullptr;
      if (meeting == Meeting::wait) {
        held.wait(word);
        continue;
      }
      begin(from);
      if (joined_in_time(lineage, from)) return from;
      arch::percpu_increment(from->ended);
      continue;
    }
    begin(current);
    if (lineage->current.load(std::memory_order_seq_cst) == current) return current;
    arch::percpu_increment(current->ended);
  }
}

}  // namespace
}  // namespace molt::hooks

using namespace molt;
using namespace molt::hooks;

extern "C" int molt_async_begin(molt_async_walk* walk, molt_hook* hook) {
  *walk = {hook, nullptr, nullptr, 0, 0};
  molt_walk held;
  molt_walk_begin(&held, hook);
  int result = 0;
  if (const molt_chain* chain = held.chain) {
    auto* steps = static_cast<Step*>(malloc(chain->count * sizeof(Step)));
    if (steps == nullptr) {
      result = -ENOMEM;
    } else {
      for (std::uint32_t i = 0; i < chain->count; ++i) {
        Lineage* lineage = chain->entries[i].owner->lineage.load(std::memory_order_acquire);
        unsigned ordinal = 0;
        for (std::uint32_t j = 0; j < i; ++j) ordinal += steps[j].lineage == lineage;
        steps[i] = {lineage, ordinal};
      }
      walk->snapshot = steps;
      walk->count = chain->count;
    }
  }
  molt_walk_end(&held);
  return result;
}

extern "C" molt_fn molt_async_next(molt_async_walk* walk) {
  auto* steps = static_cast<Step*>(walk->snapshot);
  for (;;) {
    if (walk->inside != nullptr) {
      full_fence();
      molt::arch::percpu_increment(walk->inside->ended);
      walk->inside = nullptr;
    }
    if (walk->next == walk->count) return nullptr;
    const Step& step = steps[walk->next++];
    walk->inside = enter(step.lineage);
    if (walk->inside == nullptr) continue;
    if (const Attachment* found = find_attachment(walk->inside, walk->hook->core, step.ordinal)) {
      return found->fn;
    }
  }
}

extern "C" void molt_async_end(molt_async_walk* walk) {
  if (walk->inside != nullptr) {
    full_fence();
    molt::arch::percpu_increment(walk->inside->ended);
    walk->inside = nullptr;
  }
  free(walk->snapshot);
  walk->snapshot = nullptr;
  walk->next = walk->count;
}
