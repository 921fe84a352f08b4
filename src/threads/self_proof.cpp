#include "threads/self_proof.hpp"

#include <unistd.h>

#include "threads/own_stack.hpp"

namespace molt::threads {
namespace {

struct Question {
  std::uint32_t epoch;
  RangeSet ranges;
};
Posted<Question> g_question;
// A thread that is deep down comes by again further up: a look at the one word that was in the way takes
// less than a microsecond.
constexpr std::uint32_t most_tries = 1000;
std::atomic<pid_t> g_asking{0};  // the process that asks; a child's parent does not count
std::uint32_t g_last_epoch = 0;  // of whoever asks

}  // namespace

std::atomic<std::uint32_t> self_proof_epoch{0};

[[gnu::noinline]] void answer_self_proof(std::uint32_t epoch) {
  Record* record = own_record();
  if (record == nullptr) return;
  const std::uint64_t tid = __atomic_load_n(&record->tid, __ATOMIC_RELAXED) & ~record_marks;
  const std::uint64_t out = std::uint64_t{epoch} << 32 | tid;
  if (record->question != epoch) {
    record->question = epoch;
    record->tries = 0;
  }
  if (record->tries == most_tries || __atomic_load_n(&record->out, __ATOMIC_RELAXED) == out) return;
  ++record->tries;
  const auto sp = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
  const Own own = g_question.read([&](const Question* question) {
    if (question == nullptr || question->epoch != epoch) return Own::unknown;
#ifdef MOLT_MUTATE_NO_OWN_LOOK
    return Own::leaves;
#endif
    return look_at_own_stack(question->ranges, sp, &record->held_at);
  });
  if (own == Own::leaves) __atomic_store_n(&record->out, out, __ATOMIC_RELEASE);
}

SelfProof::SelfProof() {
  const pid_t self = getpid();
  pid_t other = g_asking.load(std::memory_order_relaxed);
  may_ask_ =
      other != self && g_asking.compare_exchange_strong(other, self, std::memory_order_acquire,
                                                        std::memory_order_relaxed);
  if (may_ask_) find_main_stack();
}

SelfProof::~SelfProof() {
  if (!may_ask_) return;
  self_proof_epoch.store(0, std::memory_order_relaxed);
  g_question.post(nullptr);
  g_asking.store(0, std::memory_order_release);
}

void SelfProof::ask(const RangeSet& ranges) {
  if (++g_last_epoch == 0) ++g_last_epoch;
  epoch_ = g_last_epoch;
  g_question.post(new Question{epoch_, ranges});
  self_proof_epoch.store(epoch_, std::memory_order_release);
}

}  // namespace molt::threads
