// shadow.cpp - data attached to objects by address and id (include/molt/livepatch.h).
//
// Roles      Readers look without a lock, from any context; writers hold one lock.
// State      A table of buckets, each a list of entries, newest first.
// Invariants V1 An entry that a reader can reach is whole: constructed before it is linked.
//            V2 Entries are type-stable headers: one that was unlinked is reused only for another
//               entry, never unmapped, so that a reader that stands on it finds a valid header. The
//               data is the caller's to free in time, as in the kernel: who uses it keeps it.
//            V3 A reader on an entry that was unlinked and reused may be led into another bucket and
//               miss what it looks for. `version` of the bucket tells it to look again.
// Order      link: entry filled, then bucket.head [release]; find: head [acquire].
//            unlink: version odd [release] before the link changes, even after it.
// Death      A thread that dies inside a constructor takes the lock with it, as in the kernel.
// Checked by tests/conformance (K20, ST-shadow-vars-1), with modules/ok_shadow.cpp and st_shadow.cpp
#include <molt/livepatch.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "base/log.hpp"
#include "livepatch/engine.hpp"

namespace molt::livepatch {
namespace {

struct Entry {
  std::atomic<Entry*> next{nullptr};
  std::atomic<const void*> object{nullptr};
  std::atomic<unsigned long> id{0};
  std::atomic<void*> data{nullptr};
};

struct Bucket {
  std::atomic<std::uint64_t> version{0};
  std::atomic<Entry*> head{nullptr};
};

constexpr std::size_t buckets = 4096;
Bucket g_table[buckets];
std::mutex g_mutex;
Entry* g_free = nullptr;  // under the mutex

Bucket& bucket_of(const void* object) {
  auto key = reinterpret_cast<std::uintptr_t>(object);
  return g_table[(key * 0x9E3779B97F4A7C15ull) >> 52];
}
static_assert(buckets == std::size_t{1} << (64 - 52));

// V3. An entry can be another's only after `version` became even once more since the walk began; an
// unlink that is under way, perhaps interrupted by this very handler, leads nobody astray.
void* find(const void* object, unsigned long id) {
  Bucket& bucket = bucket_of(object);
  for (;;) {
    const std::uint64_t version = bucket.version.load(std::memory_order_acquire);
    const auto went_on = [&] {
      return bucket.version.load(std::memory_order_acquire) > (version | 1);
    };
    void* data = nullptr;
    std::size_t steps = 0;
    for (Entry* e = bucket.head.load(std::memory_order_acquire); e != nullptr;
         e = e->next.load(std::memory_order_acquire)) {
      if (e->object.load(std::memory_order_acquire) == object &&
          e->id.load(std::memory_order_acquire) == id) {
        data = e->data.load(std::memory_order_acquire);
        break;
      }
      // Led astray, it may walk in circles.
      if ((++steps & 0xFF) == 0 && went_on()) break;
    }
    if (!went_on()) return data;
  }
}

void* take_out(Bucket& bucket, Entry& previous_or_null, Entry& entry, bool is_head) {
  void* data = entry.data.load(std::memory_order_relaxed);
  bucket.version.fetch_add(1, std::memory_order_acq_rel);
  Entry* next = entry.next.load(std::memory_order_relaxed);
  if (is_head) {
    bucket.head.store(next, std::memory_order_release);
  } else {
    previous_or_null.next.store(next, std::memory_order_release);
  }
  bucket.version.fetch_add(1, std::memory_order_acq_rel);
  entry.object.store(nullptr, std::memory_order_relaxed);
  entry.next.store(g_free, std::memory_order_relaxed);
  g_free = &entry;
  return data;
}

Entry* new_entry() {
  if (g_free != nullptr) {
    Entry* entry = g_free;
    g_free = entry->next.load(std::memory_order_relaxed);
    return entry;
  }
  void* memory = std::malloc(sizeof(Entry));
  return memory == nullptr ? nullptr : new (memory) Entry;
}

void* make(void* object, unsigned long id, std::size_t bytes, molt_shadow_ctor constructor,
           void* argument, bool may_exist) {
  if (void* data = find(object, id)) {
    if (may_exist) return data;
    log::line("", "Duplicate shadow variable <%p, %lx>", object, id);
    return nullptr;
  }
  void* data = std::calloc(1, bytes == 0 ? 1 : bytes);
  if (data == nullptr) return nullptr;

  int error = 0;
  {
    std::lock_guard lock(g_mutex);
    if (void* other = find(object, id)) {
      std::free(data);
      if (may_exist) return other;
      data = nullptr;
    } else {
      if (constructor != nullptr) error = constructor(object, data, argument);
      Entry* entry = error == 0 ? new_entry() : nullptr;
      if (entry == nullptr) {
        std::free(data);
        if (error == 0) return nullptr;
      } else {
        entry->object.store(object, std::memory_order_relaxed);
        entry->id.store(id, std::memory_order_relaxed);
        entry->data.store(data, std::memory_order_relaxed);
        Bucket& bucket = bucket_of(object);
        entry->next.store(bucket.head.load(std::memory_order_relaxed), std::memory_order_relaxed);
        bucket.head.store(entry, std::memory_order_release);  // V1
        return data;
      }
    }
  }
  if (error != 0) {
    log::line("livepatch", "Failed to construct shadow variable <%p, %lx> (%d)", object, id, error);
  } else {
    log::line("", "Duplicate shadow variable <%p, %lx>", object, id);
  }
  return nullptr;
}

// All entries for which `wanted` holds, in one bucket.
template <class Wanted>
void free_in(Bucket& bucket, molt_shadow_dtor destructor, Wanted&& wanted) {
  Entry* previous = nullptr;
  for (Entry* e = bucket.head.load(std::memory_order_relaxed); e != nullptr;) {
    Entry* next = e->next.load(std::memory_order_relaxed);
    if (!wanted(*e)) {
      previous = e;
      e = next;
      continue;
    }
    auto* object = const_cast<void*>(e->object.load(std::memory_order_relaxed));
    void* data = take_out(bucket, previous ? *previous : *e, *e, previous == nullptr);
    if (destructor != nullptr) destructor(object, data);
    std::free(data);
    e = next;
  }
}

}  // namespace

void shadow_before_fork() { g_mutex.lock(); }
void shadow_after_fork() { g_mutex.unlock(); }

}  // namespace molt::livepatch

using namespace molt::livepatch;

extern "C" void* molt_shadow_get(const void* object, unsigned long id) { return find(object, id); }

extern "C" void* molt_shadow_alloc(void* object, unsigned long id, std::size_t bytes,
                                   molt_shadow_ctor constructor, void* argument) {
  return make(object, id, bytes, constructor, argument, false);
}

extern "C" void* molt_shadow_get_or_alloc(void* object, unsigned long id, std::size_t bytes,
                                          molt_shadow_ctor constructor, void* argument) {
  return make(object, id, bytes, constructor, argument, true);
}

extern "C" void molt_shadow_free(void* object, unsigned long id, molt_shadow_dtor destructor) {
  std::lock_guard lock(g_mutex);
  free_in(bucket_of(object), destructor, [&](const Entry& e) {
    return e.object.load(std::memory_order_relaxed) == object &&
           e.id.load(std::memory_order_relaxed) == id;
  });
}

extern "C" void molt_shadow_free_all(unsigned long id, molt_shadow_dtor destructor) {
  std::lock_guard lock(g_mutex);
  for (Bucket& bucket : g_table) {
    free_in(bucket, destructor,
            [&](const Entry& e) { return e.id.load(std::memory_order_relaxed) == id; });
  }
}
