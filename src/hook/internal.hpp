// internal.hpp - what the parts of src/hook share.
#pragma once

#include <molt/molt.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "hook/registry.hpp"

namespace molt::hooks {
struct Attachment;
struct Lineage;
}  // namespace molt::hooks

// Type-stable (I3): a walker may look at an owner that has just been recycled; what it reads then is
// rejected by its check of Lineage::current.
struct molt_owner {
  // A frame that points here holds the module, and no chain.
  molt_entry self = {nullptr, this};
  std::atomic<molt::hooks::Lineage*> lineage{nullptr};
  // Written before the owner comes into force, freed after it was drained.
  std::vector<molt::hooks::Attachment>* attachments = nullptr;
  std::uint64_t load_sequence = 0;
  // Per-CPU cells: callbacks that began, and that ended, for walks that change threads.
  std::uint64_t* began = nullptr;
  std::uint64_t* ended = nullptr;
  std::atomic<bool> counted{false};  // whether they were ever used in this life
  // Out of force, and once seen with nobody inside: nobody can be inside until it comes into force
  // again. A frame that points here meanwhile is one whose validation fails.
  std::atomic<bool> drained{true};
  // How many chains name this owner; under the writer's lock.
  unsigned chain_refs = 0;
  bool destroyed = false;
  molt_owner* next_free = nullptr;
};

struct molt_hook_core {
  std::string name;
  std::string signature;
  std::string description;
  std::uint64_t fingerprint = 0;
  std::uint32_t rule = 0;
  std::uint32_t on_exception = 0;
  const molt_hook_info* info = nullptr;
  std::vector<molt_hook*> instances;
  molt_chain* chain = nullptr;
  std::uint64_t gen = 1;
  molt::hooks::Order order;
};

namespace molt::hooks {

struct Attachment {
  molt_hook_core* hook;
  molt_callback* callback;
  molt_fn fn;
  int order;
  unsigned sequence;
  unsigned ordinal;  // among this module's attachments to the same hook, in calling order
};

// One per module name, and for ever: which version of it is in force.
struct Lineage {
  std::string name;
  std::atomic<Owner*> current{nullptr};  // null: none; &paused: see below
  // While paused: the version that was in force, and the thread that hands over. Changes of
  // pause_word wake the waiters.
  std::atomic<Owner*> paused_from{nullptr};
  std::atomic<int> paused_by{0};
  // While false, threads that are inside paused_from may go on entering it. Set once nobody is.
  std::atomic<bool> sealed{false};
  std::atomic<std::uint32_t> pause_word{0};
  // Callers that a pause has held up and that have not got on yet.
  std::atomic<int> held_up{0};
};

// Stands in Lineage::current during a pause.
extern Owner paused;

// walk.cpp: a caller that finds its lineage paused.
enum class Meeting { skip, join, wait };
Meeting meet_pause(const Lineage* lineage, const Owner* from);
// Whether joining was in time: looked at after the caller can be seen inside `from`.
bool joined_in_time(const Lineage* lineage, const Owner* from);

// Waits for the end of a pause; counts as held up from the first wait to the end of the scope.
class HeldUp {
 public:
  explicit HeldUp(Lineage* lineage) : lineage_(lineage) {}
  ~HeldUp();
  HeldUp(const HeldUp&) = delete;
  HeldUp& operator=(const HeldUp&) = delete;
  void wait(std::uint32_t seen);

 private:
  Lineage* const lineage_;
  bool counted_ = false;
};

// chain.cpp: chains and their memory. All under the writer's lock.
// A chain with room for `entries`, not valid before seal_chain(); null without memory.
molt_chain* new_chain(molt_hook_core* hook, std::size_t entries);
void seal_chain(molt_chain* chain);
void retire_chain(molt_chain* chain);
// Recycles retired chains in which no frame is; after a heavy_barrier().
void reclaim_chains();
// The hook in whose chain this entry lies; null for an owner's own entry.
const molt_hook_core* hook_of(const molt_entry* entry);
void release_owner_if_unused(Owner* owner);

// The callback of `owner` for a hook, by ordinal; null if it has none.
const Attachment* find_attachment(const Owner* owner, const molt_hook_core* hook, unsigned ordinal);

// hook.gen: 0 while closed, so no chain has that; chains have this one while they are written.
inline constexpr std::uint64_t gen_closed = 0;
inline constexpr std::uint64_t gen_invalid = ~std::uint64_t{0};

struct Registry {
  std::mutex mutex;  // the writer
  std::vector<molt_hook_core*> hooks;
  std::vector<Lineage*> lineages;
  std::vector<Owner*> attached;  // every owner with attachments, in load order
  // Every one ever made: they are used again, never freed (I3). One that was destroyed may be named
  // by nothing else but a chain, and leak checkers do not look into chains' memory.
  std::vector<Owner*> owners;
  Order order;  // of hooks without one of their own
  std::uint64_t next_gen = 2;
  std::uint64_t next_load_sequence = 1;
  // Without membarrier gens stay closed for ever: every call takes the fenced walk.
  bool gens_open = true;
  // New chains have an entry that is never in force (registry.cpp), so their gens stay closed.
  bool calling_in = false;
};
Registry& registry();

}  // namespace molt::hooks
