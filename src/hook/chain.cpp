// The memory of chains. A caller may hold a pointer to a chain that was retired and recycled since
// (I3): so chain memory is never unmapped, and a chain is recycled only for chains of the same
// capacity, so that what such a caller reads before its validation is always inside the chain.

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "base/own_memory.hpp"
#include "hook/internal.hpp"
#include "threads/record.hpp"

namespace molt::hooks {
namespace {

struct Pool {
  // free_[i]: chains of capacity smallest << i
  std::vector<std::vector<molt_chain*>> free_lists;
  std::vector<molt_chain*> retired;
  std::vector<molt_chain*> all;  // sorted by address
  char* slab = nullptr;
  std::size_t slab_left = 0;
};
Pool& pool() {
  static Pool* p = new Pool;
  return *p;
}

constexpr std::size_t smallest = 8;  // entries
constexpr std::size_t slab_bytes = 1 << 16;
// Retired chains that are kept before frames are looked at.
constexpr std::size_t reclaim_batch = 16;

std::size_t bytes_of(std::size_t capacity) {
  std::size_t bytes = sizeof(molt_chain) + capacity * sizeof(molt_entry);
  return (bytes + 63) & ~std::size_t{63};
}

void* carve(Pool& p, std::size_t bytes) {
  if (bytes > p.slab_left) {
    std::size_t size = std::max(slab_bytes, (bytes + 4095) & ~std::size_t{4095});
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    // Chains that were retired name callbacks that are gone.
    note_own_memory(memory, size);
    p.slab = static_cast<char*>(memory);
    p.slab_left = size;
  }
  void* at = p.slab;
  p.slab += bytes;
  p.slab_left -= bytes;
  return at;
}

const molt_chain* chain_of(const molt_entry* entry) {
  const auto& all = pool().all;
  auto after =
      std::upper_bound(all.begin(), all.end(), entry, [](const molt_entry* e, const molt_chain* c) {
        return reinterpret_cast<std::uintptr_t>(e) < reinterpret_cast<std::uintptr_t>(c);
      });
  if (after == all.begin()) return nullptr;
  const molt_chain* chain = *(after - 1);
  auto* end = reinterpret_cast<const char*>(chain) + bytes_of(chain->capacity);
  return reinterpret_cast<const char*>(entry) < end ? chain : nullptr;
}

void recycle(Pool& p, molt_chain* chain) {
  for (std::size_t i = 0; i < chain->count; ++i) {
    Owner* owner = chain->entries[i].owner;
    --owner->chain_refs;
    release_owner_if_unused(owner);
  }
  chain->count = 0;
  std::size_t list = 0;
  while ((smallest << list) < chain->capacity) ++list;
  p.free_lists[list].push_back(chain);
}

}  // namespace

molt_chain* new_chain(molt_hook_core* hook, std::size_t entries) {
  Pool& p = pool();
  std::size_t list = 0;
  while ((smallest << list) < entries + 1) ++list;
  if (p.free_lists.size() <= list) p.free_lists.resize(list + 1);
  molt_chain* chain;
  if (!p.free_lists[list].empty()) {
    chain = p.free_lists[list].back();
    p.free_lists[list].pop_back();
  } else {
    std::size_t capacity = smallest << list;
    chain = static_cast<molt_chain*>(carve(p, bytes_of(capacity)));
    if (chain == nullptr) return nullptr;
    chain->capacity = static_cast<std::uint32_t>(capacity);
    p.all.insert(std::upper_bound(p.all.begin(), p.all.end(), chain), chain);
  }
  chain->count = static_cast<std::uint32_t>(entries);
  chain->core = hook;
  // A late reader of recycled memory may look at gen and entries at any moment. It reads gen first:
  // so gen is invalid while the entries change, and valid again (seal_chain) only after them. Were
  // it stored first, that reader could pair the new gen with an old entry.
  __atomic_store_n(&chain->gen, gen_invalid, __ATOMIC_RELEASE);
  return chain;
}

void seal_chain(molt_chain* chain) {
  __atomic_store_n(&chain->gen, registry().next_gen++, __ATOMIC_RELEASE);
}

void retire_chain(molt_chain* chain) { pool().retired.push_back(chain); }

void reclaim_chains() {
  Pool& p = pool();
  if (p.retired.size() < reclaim_batch) return;
#ifndef MOLT_MUTATE_RECYCLE_EARLY
  std::vector<const molt_chain*> held;
  threads::for_each_frame([&](const molt_entry* entry, int) {
    if (const molt_chain* chain = chain_of(entry)) held.push_back(chain);
  });
  std::sort(held.begin(), held.end());
  auto is_held = [&](const molt_chain* c) {
    return std::binary_search(held.begin(), held.end(), c);
  };
#else
  auto is_held = [](const molt_chain*) { return false; };
#endif
  std::vector<molt_chain*> still;
  std::vector<molt_chain*> retired = std::move(p.retired);
  for (molt_chain* chain : retired) {
    if (is_held(chain)) {
      still.push_back(chain);
    } else {
      recycle(p, chain);
    }
  }
  p.retired = std::move(still);
}

const molt_hook_core* hook_of(const molt_entry* entry) {
  const molt_chain* chain = chain_of(entry);
  return chain ? chain->core : nullptr;
}

}  // namespace molt::hooks
