#include "threads/record.hpp"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <initializer_list>

#include "threads/self_proof.hpp"

extern "C" {
__thread molt_tls molt_tls_self
    __attribute__((tls_model("initial-exec"), visibility("default"))) = {nullptr, nullptr};
}

namespace molt::threads {
namespace {

Record* g_records = nullptr;
pthread_key_t g_key;
__thread Record* t_record __attribute__((tls_model("initial-exec"))) = nullptr;

constexpr std::size_t slab_bytes = 16384;

// Async-signal-safe memory. A hook call cannot report an error, so it waits until there is some.
void* map_pages(std::size_t bytes) {
  for (;;) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory != MAP_FAILED) return memory;
    sched_yield();
  }
}

void clear(Record* record) {
  for (FrameBlock* block = &record->first; block != nullptr; block = block->next) {
    for (auto& frame : block->frames) __atomic_store_n(&frame, nullptr, __ATOMIC_RELEASE);
  }
  record->current = &record->first;
  __atomic_store_n(&record->out, std::uint64_t{0}, __ATOMIC_RELAXED);
  record->question = 0;
  __atomic_store_n(&record->tid, 0u, __ATOMIC_RELEASE);
}

bool try_claim(Record* record, std::uint32_t tid) {
  std::uint32_t free = 0;
  return __atomic_load_n(&record->tid, __ATOMIC_RELAXED) == 0 &&
         __atomic_compare_exchange_n(&record->tid, &free, tid, false, __ATOMIC_ACQ_REL,
                                     __ATOMIC_RELAXED);
}

bool swap_tid(Record* record, std::uint32_t from, std::uint32_t to) {
  return __atomic_compare_exchange_n(&record->tid, &from, to, false, __ATOMIC_ACQ_REL,
                                     __ATOMIC_RELAXED);
}

// The first record of a new slab is claimed before the slab is published.
Record* claim(std::uint32_t tid) {
  for (Record* record = registry(); record != nullptr; record = record->next) {
    if (try_claim(record, tid)) return record;
  }
  auto* slab = static_cast<Record*>(map_pages(slab_bytes));
  constexpr std::size_t n = slab_bytes / sizeof(Record);
  for (std::size_t i = 0; i < n; ++i) {
    slab[i].current = &slab[i].first;
    slab[i].next = i + 1 < n ? &slab[i + 1] : nullptr;
  }
  slab[0].tid = tid;
  Record* head = registry();
  do {
    slab[n - 1].next = head;
  } while (!__atomic_compare_exchange_n(&g_records, &head, slab, false, __ATOMIC_RELEASE,
                                        __ATOMIC_ACQUIRE));
  return slab;
}

// Signals stay away while the record and the two words of molt_tls_self disagree.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    std::uint64_t all = ~std::uint64_t{0};
    for (int fault : {SIGTRAP, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS}) {
      all &= ~(std::uint64_t{1} << (fault - 1));  // blocked, they would kill
    }
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before_, sizeof all);
  }
  ~SignalsBlocked() { syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before_, nullptr, sizeof before_); }

 private:
  std::uint64_t before_ = 0;
};

void thread_exit(void* value) {
  SignalsBlocked blocked;
  auto* record = static_cast<Record*>(value);
  molt_tls_self = {nullptr, nullptr};
  t_record = nullptr;
  clear(record);
}

}  // namespace

void setup() { pthread_key_create(&g_key, thread_exit); }

Record* registry() { return __atomic_load_n(&g_records, __ATOMIC_ACQUIRE); }
Record* own_record() { return t_record; }

void reap_dead() {
  for (Record* record = registry(); record != nullptr; record = record->next) {
    std::uint32_t tid = __atomic_load_n(&record->tid, __ATOMIC_ACQUIRE);
    if (tid == 0) continue;
    // tgkill(0) tells whether the thread exists without touching it.
    if (tid & record_marks) continue;
    // Marked before the look: a record that its thread gave back, and that another has taken since,
    // no longer carries the mark.
    if (!swap_tid(record, tid, tid | record_marks)) continue;
    if (syscall(SYS_tgkill, getpid(), tid, 0) == 0 || errno != ESRCH) {
      swap_tid(record, tid | record_marks, tid);
    } else if (swap_tid(record, tid | record_marks, record_marks)) {
      clear(record);
    }
  }
}

void after_fork_child() {
  self_proof_epoch.store(0, std::memory_order_relaxed);  // who asked is in the parent
  for (Record* record = registry(); record != nullptr; record = record->next) {
    if (record == t_record) {
      __atomic_store_n(&record->tid, static_cast<std::uint32_t>(gettid()), __ATOMIC_RELEASE);
    } else if (record->tid != 0) {
      clear(record);
    }
  }
}

std::size_t count() {
  std::size_t n = 0;
  for (Record* record = registry(); record != nullptr; record = record->next) {
    n += __atomic_load_n(&record->tid, __ATOMIC_RELAXED) != 0;
  }
  return n;
}

}  // namespace molt::threads

using molt::threads::FrameBlock;
using molt::threads::frames_per_block;
using molt::threads::Record;

extern "C" const molt_entry** molt_frame_extend() {
  molt::threads::SignalsBlocked blocked;
  molt_tls& tls = molt_tls_self;
  Record* record = molt::threads::t_record;
  if (record == nullptr) {
    record = molt::threads::claim(static_cast<std::uint32_t>(gettid()));
    molt::threads::t_record = record;
    pthread_setspecific(molt::threads::g_key, record);
    tls.end = record->first.frames + frames_per_block;
    tls.top = record->first.frames + 1;
    return record->first.frames;
  }
  // A signal handler registered the thread since the caller looked.
  if (tls.top != tls.end) return tls.top++;
  FrameBlock* full = record->current;
  FrameBlock* block = full->next;
  if (block == nullptr) {
    block = static_cast<FrameBlock*>(molt::threads::map_pages(sizeof(FrameBlock)));
    block->previous = full;
    __atomic_store_n(&full->next, block, __ATOMIC_RELEASE);
  }
  record->current = block;
  tls.end = block->frames + frames_per_block;
  tls.top = block->frames + 1;
  return block->frames;
}

extern "C" void molt_frame_retract(const molt_entry** frame) {
  molt::threads::SignalsBlocked blocked;
  molt_tls& tls = molt_tls_self;
  Record* record = molt::threads::t_record;
  __atomic_store_n(frame, nullptr, __ATOMIC_RELEASE);
  if (record == nullptr) return;  // the thread is ending and gave its record back meanwhile
  FrameBlock* block = record->current;
  if (frame != block->frames || block->previous == nullptr) {
    tls.top = frame;
    return;
  }
  record->current = block->previous;
  tls.end = record->current->frames + frames_per_block;
  tls.top = tls.end;
}
