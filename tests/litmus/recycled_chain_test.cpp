// Question: a writer refills a recycled chain: gen invalid, entries, new gen. A late reader loads
// gen, then an entry (molt::hook::dispatch). Can it pair the new gen with an old entry?
#include "litmus.hpp"

namespace {

using litmus::Outcome;
using litmus::Verdict;

constexpr std::uint64_t invalid = ~std::uint64_t{0};

Outcome ask(bool gen_last, double seconds, const std::function<bool(const Outcome&)>& enough = {}) {
  litmus::Cell gen, entry;
  // Stores leave a core in order: one to a line that the other core has just written holds up the one
  // behind it, and the time between the two becomes long enough to be met.
  litmus::Cell slow;
  std::uint64_t seen_gen = 0, seen_entry = 0, round = 0;
  litmus::Jitter reader_jitter(1), writer_jitter(2);
  auto reader = [&] {
    slow.value.store(1, std::memory_order_relaxed);
    reader_jitter.wait(4);
    seen_gen = gen.value.load(std::memory_order_acquire);
    seen_entry = entry.value.load(std::memory_order_relaxed);
  };
  auto refill = [&] {
    ++round;
    writer_jitter.wait(4);
    gen.value.store(gen_last ? invalid : round, std::memory_order_release);
    slow.value.store(2, std::memory_order_relaxed);
    entry.value.store(round, std::memory_order_release);
    if (gen_last) gen.value.store(round, std::memory_order_release);
  };
  auto judge = [&] {
    if (seen_gen == round && seen_entry != round) return Verdict::forbidden;
    if (seen_gen != round && seen_entry == round) return Verdict::interesting;
    if (seen_gen == invalid) return Verdict::interesting;
    return Verdict::boring;
  };
  return litmus::run(reader, refill, judge, seconds, enough);
}

TEST(RecycledChain, NewGenNeverWithOldEntry) {
  LITMUS_NEEDS_TWO_CPUS();
  litmus::expect_never(ask(true, litmus::question_seconds));
}

TEST(RecycledChain, ControlGenFirst) {
  LITMUS_NEEDS_TWO_CPUS();
  litmus::expect_seen(ask(false, litmus::control_seconds_max, litmus::seen));
}

}  // namespace
