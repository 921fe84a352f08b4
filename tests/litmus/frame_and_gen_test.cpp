// Question: a caller stores its frame, then loads hook.gen, with nothing but a compiler barrier
// between (molt::hook::step). The writer stores hook.gen, then loads the frame (hook drain). Can both
// miss the other's store?
#include "litmus.hpp"

namespace {

using litmus::Outcome;
using litmus::Verdict;

enum class Writer { plain, membarrier };

Outcome ask(Writer writer, double seconds, const std::function<bool(const Outcome&)>& enough = {}) {
  litmus::Cell frame, gen;
  std::uint64_t seen_gen = 0, seen_frame = 0;
  litmus::Jitter caller_jitter(1), writer_jitter(2);
  auto caller = [&] {
    // As long as a membarrier takes, so that the store falls before, into and behind it.
    caller_jitter.wait(writer == Writer::membarrier ? 60 : 2);
    frame.value.store(1, std::memory_order_relaxed);
    litmus::compiler_barrier();
    seen_gen = gen.value.load(std::memory_order_acquire);
  };
  auto close_and_look = [&] {
    writer_jitter.wait(2);
    gen.value.store(1, std::memory_order_release);
    litmus::compiler_barrier();
    if (writer == Writer::membarrier) litmus::membarrier();
    seen_frame = frame.value.load(std::memory_order_acquire);
  };
  auto judge = [&] {
    Verdict verdict = Verdict::boring;
    if (seen_gen == 0 && seen_frame == 0) {
      verdict = Verdict::forbidden;
    } else if (seen_gen == 0 || seen_frame == 0) {
      verdict = Verdict::interesting;  // one saw the other, not both: they were close
    }
    frame.value.store(0, std::memory_order_relaxed);
    gen.value.store(0, std::memory_order_relaxed);
    return verdict;
  };
  return litmus::run(caller, close_and_look, judge, seconds, enough);
}

TEST(FrameAndGen, NeverBothMissWithMembarrier) {
  LITMUS_NEEDS_TWO_CPUS();
  if (!litmus::membarrier_ready())
    GTEST_SKIP() << "this kernel has no private expedited membarrier";
  litmus::expect_never(ask(Writer::membarrier, litmus::question_seconds));
}

TEST(FrameAndGen, ControlBothMissWithout) {
  LITMUS_NEEDS_TWO_CPUS();
  litmus::expect_seen(ask(Writer::plain, litmus::control_seconds_max, litmus::seen));
}

}  // namespace
