// Question: a callback is always under way somewhere (a new one begins before the last one ends).
// The unloader sums the counters cell by cell. Can the sums agree?
//
// Not if ended is summed first: whatever ended in that sum had begun before it, and is in the sum of
// those begun. The other way round the sums can agree: control.
#include "litmus.hpp"

namespace {

using litmus::Outcome;
using litmus::Verdict;

Outcome ask(bool ended_first, double seconds,
            const std::function<bool(const Outcome&)>& enough = {}) {
  litmus::Cell begun[2], ended[2];
  auto increment = [](litmus::Cell& cell) {  // as percpu_increment(): no locked instruction
    std::uint64_t value = cell.value.load(std::memory_order_relaxed);
    cell.value.store(value + 1, std::memory_order_release);
  };
  // One callback is under way from the beginning to the end.
  increment(begun[0]);
  std::uint64_t sum_begun = 0, sum_ended = 0;
  litmus::Jitter callers_jitter(1), unloader_jitter(2);
  auto callers = [&] {
    callers_jitter.wait(4);
    increment(begun[1]);
    increment(ended[0]);
    increment(begun[0]);
    increment(ended[1]);
  };
  auto sum = [](litmus::Cell* cells) {
    std::uint64_t first = cells[0].value.load(std::memory_order_acquire);
    return first + cells[1].value.load(std::memory_order_acquire);
  };
  auto unloader = [&] {
    unloader_jitter.wait(4);
    if (ended_first) {
      sum_ended = sum(ended);
      sum_begun = sum(begun);
    } else {
      sum_begun = sum(begun);
      sum_ended = sum(ended);
    }
  };
  auto judge = [&] {
    if (sum_begun == sum_ended) return Verdict::forbidden;
    return sum_begun - sum_ended == 1 ? Verdict::boring : Verdict::interesting;
  };
  return litmus::run(callers, unloader, judge, seconds, enough);
}

TEST(BegunAndEnded, NeverEqualWhileOneIsInside) {
  LITMUS_NEEDS_TWO_CPUS();
  litmus::expect_never(ask(true, litmus::question_seconds));
}

TEST(BegunAndEnded, ControlBegunFirst) {
  LITMUS_NEEDS_TWO_CPUS();
  litmus::expect_seen(ask(false, litmus::control_seconds_max, litmus::seen));
}

}  // namespace
