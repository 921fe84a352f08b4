// Threads that run without a pause, and look at themselves where they pass (threads/self_proof.hpp).

#include "threads/self_proof.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#include <vector>

#include "threads/own_stack.hpp"
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

// A word that was found on one stack says nothing once the thread is on another, which is deeper in memory:
// whoever it belonged to may have returned.
class OtherStackTest : public testing::Test {
 protected:
  static constexpr std::size_t part = 256 * 1024;
  static constexpr std::size_t depth = 64 * 1024;
  static constexpr std::uintptr_t old = 0x1234'5678'9000;

  static inline RangeSet ranges_;
  static inline std::uintptr_t held_at_;
  static inline Own in_handler_, afterwards_;
  static inline void (*handled_)();

  static Own look_from(const volatile void* sp) {
    return look_at_own_stack(ranges_, reinterpret_cast<std::uintptr_t>(sp), &held_at_);
  }
  [[gnu::noinline]] static Own look_here() { return look_from(__builtin_frame_address(0)); }
  // With the word far from where anything else is called, so that it is there still afterwards.
  [[gnu::noinline]] static Own look_from_below() {
    volatile std::uintptr_t words[depth / sizeof(std::uintptr_t)];
    words[0] = old + 8;
    const Own own = look_from(words);
    asm volatile("" ::"r"(words) : "memory");
    return own;
  }
  static void on_signal(int) { handled_(); }

  // f() on a thread whose alternate stack is below (0) or above (2) its own, in one mapping.
  static void on_thread(int alternate_part, void* (*f)(void*)) {
    ranges_ = {};
    ranges_.add(old, old + 16);
    held_at_ = 0;
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_ONSTACK;
    ASSERT_EQ(sigaction(SIGUSR2, &action, nullptr), 0);
    void* memory =
        mmap(nullptr, 3 * part, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(memory, MAP_FAILED);
    stack_t alternate{static_cast<char*>(memory) + alternate_part * part, 0, part};
    pthread_attr_t attributes;
    ASSERT_EQ(pthread_attr_init(&attributes), 0);
    ASSERT_EQ(pthread_attr_setstack(&attributes, static_cast<char*>(memory) + part, part), 0);
    pthread_t thread;
    ASSERT_EQ(pthread_create(&thread, &attributes, f, &alternate), 0);
    pthread_join(thread, nullptr);
    pthread_attr_destroy(&attributes);
    munmap(memory, 3 * part);
  }
};

TEST_F(OtherStackTest, AWordOfAHandlerThatHasReturnedHoldsNobody) {
  handled_ = [] { in_handler_ = look_from_below(); };
  on_thread(2, [](void* alternate) -> void* {
    sigaltstack(static_cast<stack_t*>(alternate), nullptr);
    raise(SIGUSR2);
    afterwards_ = look_here();
    return nullptr;
  });
  EXPECT_EQ(in_handler_, Own::stays);
  EXPECT_EQ(afterwards_, Own::leaves);
}

TEST_F(OtherStackTest, AWordBelowWhatAHandlerInterruptedHoldsNobody) {
  handled_ = [] { in_handler_ = look_here(); };
  on_thread(0, [](void* alternate) -> void* {
    sigaltstack(static_cast<stack_t*>(alternate), nullptr);
    afterwards_ = look_from_below();
    raise(SIGUSR2);
    return nullptr;
  });
  EXPECT_EQ(afterwards_, Own::stays);
  EXPECT_EQ(in_handler_, Own::leaves);
}

// A handler may stand on 8 KiB, which its signal's frame and the gate have used most of.
TEST_F(OtherStackTest, OnAnAlternateStackALookTakesLittleOfIt) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP()
      << "a sanitizer puts space of its own between variables, and calls functions of its own";
#else
  static std::size_t used;
  static volatile unsigned char* bottom;
  handled_ = [] {
    constexpr std::size_t looked_at = 16 * 1024, own = 512;
    auto* const frame = static_cast<volatile unsigned char*>(__builtin_frame_address(0));
    bottom = frame - looked_at;
    for (volatile unsigned char* at = bottom; at < frame - own; ++at) *at = 0xa5;
    in_handler_ = look_here();
    const volatile unsigned char* touched = bottom;
    while (*touched == 0xa5) ++touched;
    used = static_cast<std::size_t>(frame - touched);
  };
  on_thread(2, [](void* alternate) -> void* {
    sigaltstack(static_cast<stack_t*>(alternate), nullptr);
    // The runtime is bound when it is loaded; this program's first call of a function takes 2.7 KiB more.
    afterwards_ = look_here();
    raise(SIGUSR2);
    return nullptr;
  });
  EXPECT_EQ(in_handler_, Own::leaves);
  EXPECT_LT(used, 3072u);
#endif
}

}  // namespace
