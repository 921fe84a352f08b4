// percpu.hpp - counting on the CPU one happens to run on, without an atomic instruction, by a
// restartable sequence (rseq, registered by glibc >= 2.35). Without rseq: one atomic add.
//
// A counter set is an array of 64-byte cells, one per possible CPU.
#pragma once

#include <sys/rseq.h>

#include <cstddef>
#include <cstdint>

namespace molt::arch {

inline constexpr std::size_t percpu_stride = 64;

// ThreadSanitizer does not see what assembly does: there the atomic add serves.
[[gnu::always_inline]] inline bool percpu_restartable() {
#if defined(__SANITIZE_THREAD__)
  return false;
#else
  return __rseq_size != 0;
#endif
}

// ++cells[current cpu]. If the thread is preempted, migrated or signalled before the increment has
// committed, the kernel sends it to the abort label and it starts anew on whatever CPU it is then.
[[gnu::always_inline]] inline void percpu_increment(void* cells) {
  if (!percpu_restartable()) [[unlikely]] {
    __atomic_fetch_add(static_cast<std::uint64_t*>(cells), 1, __ATOMIC_SEQ_CST);
    return;
  }
  auto* rseq = reinterpret_cast<struct rseq*>(static_cast<char*>(__builtin_thread_pointer()) +
                                              __rseq_offset);
  std::uint64_t scratch;
  asm volatile(
      // struct rseq_cs: version, flags, start, length after start, abort
      ".pushsection __rseq_cs, \"aw\"\n"
      ".balign 32\n"
      "3: .long 0, 0\n"
      ".quad 1f, (2f - 1f), 4f\n"
      ".popsection\n"
      "5: leaq 3b(%%rip), %[scratch]\n"
      "movq %[scratch], %[cs]\n"
      "1: movl %[cpu], %k[scratch]\n"
      "shlq $6, %[scratch]\n"
      "incq (%[cells], %[scratch])\n"  // the commit
      "2:\n"
      ".pushsection __rseq_failure, \"ax\"\n"
      ".byte 0x0f, 0xb9, 0x3d\n"  // ud1 with the signature that the kernel checks
      ".long 0x53053053\n"
      "4: jmp 5b\n"
      ".popsection\n"
      : [scratch] "=&r"(scratch), [cs] "+m"(rseq->rseq_cs)
      : [cpu] "m"(rseq->cpu_id), [cells] "r"(cells)
      : "memory", "cc");
}

}  // namespace molt::arch
