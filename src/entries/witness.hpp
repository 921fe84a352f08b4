// witness.hpp - what a change of code asks about the threads of this process.
#pragma once

#include <span>

#include "arch/x86_64/redirect.hpp"
#include "base/result.hpp"
#include "threads/residency.hpp"

namespace molt::entries {

// Looks at every thread of the process. A thread that runs in the bytes asked about is left alone for
// `running_ms`, then it is signalled. `own_frame`: the caller's stack below it is the runtime's own. `foreseen`:
// what is asked about the same threads next.
class ThreadWitness final : public arch::Witness {
 public:
  explicit ThreadWitness(int patience_ms, int running_ms = 10, const void* own_frame = nullptr,
                         const threads::Foreseen& foreseen = {})
      : patience_ms_(patience_ms),
        running_ms_(running_ms),
        own_frame_(own_frame),
        foreseen_(foreseen) {}
  // All threads but the calling one have just been seen to.
  void others_let_traps_in() { others_let_traps_in_ = true; }
  Status no_thread_blocks_sigtrap() override;
  Status no_thread_within(std::span<const arch::CodeRange> ranges) override;

 private:
  const int patience_ms_;
  const int running_ms_;
  const void* const own_frame_;
  const threads::Foreseen foreseen_;
  bool others_let_traps_in_ = false;
};

}  // namespace molt::entries
