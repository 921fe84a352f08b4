// Threads that run without a pause, and look at themselves where they pass (threads/self_proof.hpp).

#include "threads/self_proof.hpp"

#include <signal.h>

#include <vector>

#include "threads/record.hpp"
#include "victims.hpp"

namespace {

using namespace molt;
using namespace molt::threads;
using victims::Code;
using victims::until;
using victims::Victim;

// The calling thread has a record, as one has that has called a hook.
void take_record() {
  const molt_entry** frame = molt_frame_extend();
  molt_frame_retract(frame);
}

void pass_once(void*) { pass(); }

struct Loop {
  std::atomic<bool> stop{false};
  std::atomic<bool> began{false};
  // Passes all the time, with nothing of its own on the stack.
  static void passing(void* given) {
    auto& loop = *static_cast<Loop*>(given);
    loop.began = true;
    while (!loop.stop.load(std::memory_order_relaxed)) pass();
  }
};

// Never sleeps, and cannot be sampled: whoever is out has said so itself.
Proof prove(const Code& code, int timeout_ms, std::vector<bool>* called_in = nullptr) {
  ProofOptions options;
  options.deadline = Deadline::in_ms(timeout_ms);
  options.may_sample = false;
  options.own_frame = __builtin_frame_address(0);
  options.call_in = [called_in](bool on) {
    if (called_in != nullptr) called_in->push_back(on);
  };
  auto proof = prove_out(code.range(), options);
  EXPECT_TRUE(proof) << (proof ? "" : proof.error().detail);
  return proof ? std::move(*proof) : Proof{};
}

class SelfProofTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { setup(); }
};

// Deep down it has words that look like return addresses; where it passes it has none.
TEST_F(SelfProofTest, ABusyThreadSaysThatItIsOut) {
  Code code;
  std::atomic<bool> stop{false};
  std::atomic<bool> began{false};
  Victim busy([&] {
    take_record();
    while (!stop.load(std::memory_order_relaxed)) {
      pass();
      volatile std::uintptr_t stale[64];
      for (auto& word : stale) word = code.begin() + 1;
      began = true;
      for (int i = 0; i < 10'000; ++i) asm volatile("" ::"r"(stale) : "memory");
      for (auto& word : stale) word = 0;
    }
  });
  until([&] { return began.load(); });
  std::vector<bool> called_in;
  const Proof proof = prove(code, 30'000, &called_in);
  EXPECT_TRUE(proof.out());
  EXPECT_GE(proof.answered, 1u);
  // Called, and let go.
  EXPECT_EQ(called_in, (std::vector<bool>{true, false}));
  EXPECT_EQ(self_proof_epoch.load(), 0u);
  stop = true;
}

TEST_F(SelfProofTest, WhoPassesInsideIsNotOut) {
  Code code;
  Loop loop;
  Victim inside([&] {
    take_record();
    code.call(Loop::passing, &loop);
  });
  until([&] { return loop.began.load(); });
  const Proof proof = prove(code, 100);
  loop.stop = true;
  ASSERT_EQ(proof.holders.size(), 1u);
  EXPECT_EQ(proof.holders[0].tid, inside.tid());
  EXPECT_EQ(proof.answered, 0u);
}

// It passes in a signal handler, on a stack of its own, while what was interrupted is inside.
TEST_F(SelfProofTest, AHandlerOnAnotherStackLooksAtWhatItInterrupted) {
  static Loop* loop;
  for (const bool within : {true, false}) {
    SCOPED_TRACE(within ? "inside" : "outside");
    Code code;
    Loop passing;
    loop = &passing;
    Victim victim([&] {
      take_record();
      static char alternate[64 * 1024];
      const stack_t stack{alternate, 0, sizeof alternate};
      sigaltstack(&stack, nullptr);
      struct sigaction action {};
      action.sa_handler = [](int) { Loop::passing(loop); };
      action.sa_flags = SA_ONSTACK;
      sigaction(SIGUSR2, &action, nullptr);
      const auto interrupt = [](void*) { raise(SIGUSR2); };
      within ? code.call(interrupt, nullptr) : interrupt(nullptr);
      const stack_t none{nullptr, SS_DISABLE, 0};
      sigaltstack(&none, nullptr);
    });
    until([&] { return passing.began.load(); });
    const Proof proof = prove(code, within ? 100 : 30'000);
    EXPECT_EQ(proof.out(), !within);
    passing.stop = true;
  }
}

// After the time in which others would have come by they are left alone.
TEST_F(SelfProofTest, WhoNeverPassesIsNotCalledForLong) {
  Code code;
  std::atomic<std::uint32_t> stop{0}, began{0};
  Victim inside([&] { code.spin(stop, began); });
  until([&] { return began.load() != 0; });
  std::vector<bool> called_in;
  EXPECT_FALSE(prove(code, 300, &called_in).out());
  EXPECT_EQ(called_in, (std::vector<bool>{true, false}));
  stop = 1;
}

TEST_F(SelfProofTest, OneProofAsks) {
  const SelfProof first, second;
  EXPECT_TRUE(first);
  EXPECT_FALSE(second);
}

TEST_F(SelfProofTest, NobodyAsksInAChild) {
  Code code;
  SelfProof proof;
  proof.ask(code.range());
  const int asked = victims::in_child([] {
    after_fork_child();
    const SelfProof own;
    return self_proof_epoch.load() != 0 || !own;
  });
  EXPECT_EQ(asked, 0);
  EXPECT_NE(self_proof_epoch.load(), 0u);
}

// A record that another thread takes has no answer of the one before.
TEST_F(SelfProofTest, AnAnswerGoesWithItsThread) {
  Code code;
  SelfProof proof;
  proof.ask(code.range());
  const auto answers = [&] {
    std::vector<int> tids;
    proof.hear([&](int tid) { tids.push_back(tid); });
    return tids;
  };
  int first_tid = 0;
  std::thread([&] {
    take_record();
    pass_once(nullptr);
    first_tid = gettid();
    EXPECT_EQ(answers(), std::vector<int>{first_tid});
  }).join();
  EXPECT_EQ(answers(), std::vector<int>{});
  Record* reused = nullptr;
  std::thread([&] {
    take_record();
    reused = own_record();
    EXPECT_EQ(answers(), std::vector<int>{});
    code.call(pass_once, nullptr);
    EXPECT_EQ(answers(), std::vector<int>{});
    pass_once(nullptr);  // further up
    EXPECT_EQ(answers(), std::vector<int>{gettid()});
  }).join();
  EXPECT_EQ(reused->tid, 0u);
}

}  // namespace
