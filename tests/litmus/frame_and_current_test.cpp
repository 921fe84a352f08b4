// Question: on the slow path a caller publishes its frame by an exchange, then loads
// Lineage::current; the writer stores it, fences, then loads the frame (no membarrier anywhere: the
// fallback). Can both miss the other's store?
#include "litmus.hpp"

namespace {

using litmus::Outcome;
using litmus::Verdict;

Outcome ask(bool caller_fences, bool writer_fences, double seconds,
            const std::function<bool(const Outcome&)>& enough = {}) {
  litmus::Cell frame, current;
  // Stores leave a core in order: one to a line that the other core has just written holds up those
  // behind it, and the reordering that a fence is to forbid becomes frequent.
  litmus::Cell slow;
  std::uint64_t seen_current = 0, seen_frame = 0;
  litmus::Jitter caller_jitter(1), writer_jitter(2);
  auto caller = [&] {
    caller_jitter.wait(3);
    slow.value.store(1, std::memory_order_relaxed);
    if (caller_fences) {
      frame.value.exchange(1, std::memory_order_seq_cst);
    } else {
      frame.value.store(1, std::memory_order_relaxed);
      litmus::compiler_barrier();
    }
    seen_current = current.value.load(std::memory_order_acquire);
  };
  auto close_and_look = [&] {
    writer_jitter.wait(3);
    slow.value.store(2, std::memory_order_relaxed);
    current.value.store(1, std::memory_order_release);
    if (writer_fences) {
      std::atomic_thread_fence(std::memory_order_seq_cst);
    } else {
      litmus::compiler_barrier();
    }
    seen_frame = frame.value.load(std::memory_order_acquire);
  };
  auto judge = [&] {
    Verdict verdict = Verdict::boring;
    if (seen_current == 0 && seen_frame == 0) {
      verdict = Verdict::forbidden;
    } else if (seen_current == 1 && seen_frame == 1) {
      verdict = Verdict::interesting;  // both stores before both loads
    }
    frame.value.store(0, std::memory_order_relaxed);
    current.value.store(0, std::memory_order_relaxed);
    return verdict;
  };
  return litmus::run(caller, close_and_look, judge, seconds, enough);
}

TEST(FrameAndCurrent, NeverBothMissWithFences) {
  LITMUS_NEEDS_TWO_CPUS();
  litmus::expect_never(ask(true, true, litmus::question_seconds));
}

TEST(FrameAndCurrent, ControlCallerWithoutFence) {
  LITMUS_NEEDS_TWO_CPUS();
  litmus::expect_seen(ask(false, true, litmus::control_seconds_max, litmus::seen));
}

TEST(FrameAndCurrent, ControlWriterWithoutFence) {
  LITMUS_NEEDS_TWO_CPUS();
  litmus::expect_seen(ask(true, false, litmus::control_seconds_max, litmus::seen));
}

}  // namespace
