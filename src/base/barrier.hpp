// barrier.hpp - the writer's half of every asymmetric pairing: a barrier on all other threads.
//
// Readers pay a compiler barrier, the rare writer pays membarrier(PRIVATE_EXPEDITED). Where the
// kernel or a seccomp filter denies it, asymmetric() is false: readers must then fence themselves.
#pragma once

#include <atomic>

namespace molt {

// Registers the process for membarrier; once, before the first reader. Again in a forked child.
void barrier_setup();
// Whether heavy_barrier() reaches other threads. Constant after barrier_setup().
bool barrier_asymmetric();
// After it returns, every thread of the process has executed a full barrier since the call began
// (asymmetric), or only the calling one has.
void heavy_barrier();

// A full barrier of the calling thread. ThreadSanitizer knows no fences: there it is a
// read-modify-write that it does know, on a word that all of them share.
inline void full_fence() {
#if defined(__SANITIZE_THREAD__)
  static std::atomic<int> word{0};
  word.fetch_add(1, std::memory_order_seq_cst);
#else
  std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

}  // namespace molt
