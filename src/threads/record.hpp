// record.hpp - the per-thread record of nested hook calls, found by the writer from any thread.
//
// Roles      Each thread writes its own frames; the writer reads all of them.
// State      A frame is a pointer to the molt_entry being called (or a chain's head), or null. 8
//            bytes per nesting level; 16 bytes of static TLS per thread point at the next free one.
// Invariants T1 Records and frame blocks are type-stable: recycled, never unmapped.
//            T2 A thread's frames are null whenever it is in no hook.
// Order      Frame stores pair with heavy_barrier() in the writer (molt.h, "Order").
// Death      Thread exit: a pthread key's destructor clears and frees the record. A hook called
//            after that takes a new record, whose leftover a later scan frees once the thread is
//            gone. fork: after_fork() frees the records of all other threads. Unwinding: the
//            caller's frame_scope.
// Progress   Taking a record is lock-free and async-signal-safe.
// Checked by tests/hook (churn, nesting, fork, signals), tests/torture.
#pragma once

#include <molt/molt.h>

#include <cstddef>
#include <cstdint>

namespace molt::threads {

// Once, before the first hook is called.
void setup();

// f(frame value, tid) for every non-null frame of every thread. Frames may change meanwhile; what
// is certain is only what the caller's protocol makes certain.
template <class F>
void for_each_frame(F&& f);

// f(frame value) for the calling thread's own frames.
template <class F>
void for_own_frames(F&& f);

// Frees the records of threads that no longer exist and could not do it themselves.
void reap_dead();

// In a forked child: only the calling thread's record stays.
void after_fork_child();

// Threads that have a record now.
std::size_t count();

// --- implementation of the templates ---------------------------------------------------------

inline constexpr std::size_t frames_per_block = 30;

struct FrameBlock {
  const molt_entry* frames[frames_per_block];
  FrameBlock* previous;
  FrameBlock* next;  // kept for reuse once made
};

struct Record {
  FrameBlock first;
  FrameBlock* current;  // where tls.top points; only the owner looks
  Record* next;         // registry; set once
  std::uint32_t tid;    // 0: free; record_marks besides
  // self_proof.hpp: the last question, and how often the thread has looked; only the owner does. `out`: epoch
  // << 32 | tid, if the answer was that.
  std::uint32_t question;
  std::uint32_t tries;
  std::uintptr_t held_at;
  std::uint64_t out;
};

// In `tid`, while reap_dead() asks whether the thread exists.
inline constexpr std::uint32_t record_marks = 1u << 31;

Record* registry();
Record* own_record();

template <class F>
void for_record_frames(Record* record, F&& f) {
  for (FrameBlock* block = &record->first; block != nullptr;
       block = __atomic_load_n(&block->next, __ATOMIC_ACQUIRE)) {
    for (auto& frame : block->frames) {
      if (const molt_entry* entry = __atomic_load_n(&frame, __ATOMIC_ACQUIRE)) f(entry);
    }
  }
}

template <class F>
void for_each_frame(F&& f) {
  for (Record* record = registry(); record != nullptr; record = record->next) {
    for_record_frames(record, [&](const molt_entry* entry) {
      f(entry, static_cast<int>(__atomic_load_n(&record->tid, __ATOMIC_RELAXED)));
    });
  }
}

template <class F>
void for_own_frames(F&& f) {
  if (Record* record = own_record()) for_record_frames(record, f);
}

}  // namespace molt::threads
