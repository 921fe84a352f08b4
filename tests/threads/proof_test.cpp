// prove_out: all threads, those that come and go meanwhile, and the one that asks.

#include <dlfcn.h>
#include <signal.h>
#include <sys/prctl.h>

#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "base/sanitizer.hpp"
#include "threads/own_thread.hpp"
#include "victims.hpp"

namespace {

using namespace molt;
using namespace molt::threads;
using victims::Code;
using victims::Gate;
using victims::sleeps_in;
using victims::until;
using victims::Victim;

// The bounds are in the caller's locals, so its frame is where its stack begins.
Proof prove(const RangeSet& ranges, ProofOptions options,
            const void* frame = __builtin_frame_address(0)) {
  options.own_frame = frame;
  auto proof = prove_out(ranges, options);
  EXPECT_TRUE(proof) << (proof ? "" : proof.error().detail);
  return proof ? std::move(*proof) : Proof{};
}
Proof prove(const RangeSet& ranges, int timeout_ms,
            const void* frame = __builtin_frame_address(0)) {
  ProofOptions options;
  options.deadline = Deadline::in_ms(timeout_ms);
  return prove(ranges, options, frame);
}

std::string texts(const Proof& proof) {
  std::string text;
  for (const Finding& f : proof.holders) {
    text +=
        std::to_string(f.tid) + " " + f.name + " " + to_text(f.verdict) + ": " + f.reason + "\n";
  }
  return text;
}

TEST(Proof, NobodyInside) {
  Code code;
  Gate gate;
  {
    std::vector<std::unique_ptr<Victim>> victims;
    for (int i = 0; i < 40; ++i) {
      victims.push_back(std::make_unique<Victim>([&] { gate.wait(); }));
    }
    until([&] { return gate.waiting() == 40; });
    const Proof proof = prove(code.range(), 30'000);
    EXPECT_TRUE(proof.out()) << texts(proof);
    EXPECT_GE(proof.looked_at, 41u);
    gate.open();
  }
}

TEST(Proof, EmptySet) { EXPECT_TRUE(prove(RangeSet{}, 0).out()); }

TEST(Proof, NamesWhoIsInside) {
  Code code;
  Gate inside, outside;
  {
    Victim holder([&] { code.call(Gate::wait_at, &inside); });
    Victim other([&] { outside.wait(); });
    until([&] { return sleeps_in(holder.tid(), SYS_futex) && sleeps_in(other.tid(), SYS_futex); });
    const Proof proof = prove(code.range(), 0);
    ASSERT_EQ(proof.holders.size(), 1u) << texts(proof);
    EXPECT_EQ(proof.holders[0].tid, holder.tid());
    EXPECT_STREQ(proof.holders[0].name, "victim");
    EXPECT_EQ(proof.holders[0].verdict, Verdict::inside);
    EXPECT_STREQ(syscall_name(proof.holders[0].syscall), "futex");
    inside.open();
    outside.open();
  }
}

template <class F>
[[gnu::noinline]] void further_down(F&& f) {
  volatile char room[4096];
  room[0] = 0;
  f();
  room[1] = room[0];
}

// It sleeps, is looked at twice, and goes further down: where its stack began does not hold any more.
TEST(Proof, LooksAnewOnceAThreadHasRun) {
  Code code;
  Gate outside, inside;
  {
    Victim victim([&] {
      outside.wait();
      further_down([&] { code.call(Gate::wait_at, &inside); });
    });
    until([&] { return sleeps_in(victim.tid(), SYS_futex); });
    for (int i = 0; i < 2; ++i) EXPECT_TRUE(prove(code.range(), 30'000).out());
    outside.open();
    until([&] { return inside.waiting() == 1 && sleeps_in(victim.tid(), SYS_futex); });
    const Proof proof = prove(code.range(), 0);
    inside.open();
    ASSERT_EQ(proof.holders.size(), 1u) << texts(proof);
    EXPECT_EQ(proof.holders[0].tid, victim.tid());
    EXPECT_EQ(proof.holders[0].verdict, Verdict::inside);
  }
}

TEST(Proof, WaitsUntilTheyLeave) {
  Code code;
  Gate gate;
  {
    Victim holder([&] { code.call(Gate::wait_at, &gate); });
    until([&] { return sleeps_in(holder.tid(), SYS_futex); });
    int asked = 0;
    ProofOptions options;
    options.cancelled = [&] {
      if (++asked == 3) gate.open();
      return false;
    };
    const Proof proof = prove(code.range(), options);
    EXPECT_TRUE(proof.out()) << texts(proof);
    EXPECT_GE(asked, 3);
  }
}

TEST(Proof, Cancelled) {
  Code code;
  Gate gate;
  {
    Victim holder([&] { code.call(Gate::wait_at, &gate); });
    until([&] { return sleeps_in(holder.tid(), SYS_futex); });
    ProofOptions options;
    options.cancelled = [] { return true; };
    const Proof proof = prove(code.range(), options);
    EXPECT_TRUE(proof.cancelled);
    EXPECT_FALSE(proof.out());
    gate.open();
  }
}

// Threads that wake all the time, among many that sleep: each is looked at by itself, between two of
// its naps.
TEST(Proof, NappersAreOut) {
  Code code;
  Gate gate;
  std::atomic<bool> stop{false};
  {
    std::vector<std::unique_ptr<Victim>> victims;
    for (int i = 0; i < 300; ++i) {
      victims.push_back(std::make_unique<Victim>([&] { gate.wait(); }));
    }
    for (int i = 0; i < 4; ++i) {
      victims.push_back(std::make_unique<Victim>([&] {
        while (!stop.load(std::memory_order_relaxed)) {
          const timespec t{0, 100'000};
          nanosleep(&t, nullptr);  // tidy: sleep-ok the subject
        }
      }));
    }
    until([&] { return gate.waiting() == 300; });
    ProofOptions options;
    options.deadline = Deadline::in_ms(60'000);
    options.may_sample = false;
    const Proof proof = prove(code.range(), options);
    EXPECT_TRUE(proof.out()) << texts(proof);
    stop.store(true, std::memory_order_relaxed);
    gate.open();
  }
}

// --- the one that asks ---------------------------------------------------------------------------------

struct Asking {
  const Code* code;
  Proof proof;
  static void ask(void* given) {
    auto* self = static_cast<Asking*>(given);
    ProofOptions options;
    options.deadline = Deadline::in_ms(0);
    options.own_frame = __builtin_frame_address(0);
    auto proof = prove_out(self->code->range(), options);
    ASSERT_TRUE(proof);
    self->proof = std::move(*proof);
  }
};

TEST(Asker, InsideItself) {
  Code code;
  Asking asking{&code, {}};
  code.call(Asking::ask, &asking);
  ASSERT_EQ(asking.proof.holders.size(), 1u) << texts(asking.proof);
  EXPECT_EQ(asking.proof.holders[0].tid, gettid());
  EXPECT_EQ(asking.proof.holders[0].verdict, Verdict::inside);
}

// The bounds that the asker has on its own stack are no return addresses (Y6): not below the frame
// that it names.
TEST(Asker, ItsOwnWordsAreNoHits) {
  Code code;
  struct Below {
    __attribute__((noinline)) static bool ask(const Code& code, const void* frame) {
      volatile std::uintptr_t words[64];
      for (auto& word : words) word = code.begin();
      RangeSet ranges;
      ranges.add(words[3], words[4] + 4096);
      ProofOptions options;
      options.deadline = Deadline::in_ms(10'000);
      options.own_frame = frame;
      auto proof = prove_out(ranges, options);
      const bool out = proof && proof->out();
      return out && words[5] == code.begin();
    }
  };
  EXPECT_TRUE(Below::ask(code, __builtin_frame_address(0)));
}

// A set's own memory, and copies of it, hold no address in the ranges.
TEST(Asker, SetsAreMasked) {
  Code code;
  const RangeSet set = code.range();
  const std::uintptr_t low = set.masked_low();
  EXPECT_FALSE(set.contains(low));
  EXPECT_NE(low, code.begin());
}

// --- those that come and go ------------------------------------------------------------------------------

TEST(Births, ManyComeAndGo) {
  Code code;
  std::atomic<bool> stop{false};
  std::vector<std::thread> mothers;
  for (int i = 0; i < 2; ++i) {
    mothers.emplace_back([&] {
      while (!stop.load(std::memory_order_relaxed)) {
        std::thread([] {}).join();
      }
    });
  }
  Gate gate;
  {
    Victim holder([&] { code.call(Gate::wait_at, &gate); });
    until([&] { return sleeps_in(holder.tid(), SYS_futex); });
    for (int i = 0; i < 200; ++i) {
      // The sleeper is never missed, however the listing is disturbed.
      const Proof proof = prove(code.range(), 0);
      bool seen = false;
      for (const Finding& f : proof.holders) {
        seen = seen || (f.tid == holder.tid() && f.verdict == Verdict::inside);
      }
      EXPECT_TRUE(seen) << texts(proof);
    }
    gate.open();
  }
  stop.store(true, std::memory_order_relaxed);
  for (auto& mother : mothers) mother.join();
  const Proof proof = prove(code.range(), 30'000);
  EXPECT_TRUE(proof.out()) << texts(proof);
}

// A thread inside gives birth to another one inside, and leaves: as long as one of them is there, it
// is not proven that nobody is.
// N5: one count in place of two listings.
TEST(Births, SinceTheLastListing) {
  Code code;
  Gate outside, inside;
  const auto asleep = [](const Victim& victim) {
    until([&] { return sleeps_in(victim.tid(), SYS_futex); });
  };
  const auto is_out = [&] { return prove(code.range(), 0).out(); };
  {
    auto other = std::make_unique<Victim>([&] { outside.wait(); });
    asleep(*other);
    EXPECT_TRUE(prove(code.range(), 30'000).out());
    EXPECT_TRUE(is_out());  // nobody has come or gone
    auto holder = std::make_unique<Victim>([&] { code.call(Gate::wait_at, &inside); });
    asleep(*holder);
    EXPECT_FALSE(is_out());
    inside.open();
    holder.reset();
    EXPECT_TRUE(prove(code.range(), 30'000).out());
    // As many as were listed, but not those.
    Gate again;
    outside.open();
    other.reset();
    Victim another([&] { code.call(Gate::wait_at, &again); });
    asleep(another);
    EXPECT_FALSE(is_out());
    again.open();
  }
}

// A look for one question answers the next one too, until the thread runs.
TEST(Foreseen, IsBelievedUntilTheThreadRuns) {
  Code asked, foreseen;
  Gate first, second, inside;
  {
    Victim mover([&] {
      first.wait();
      foreseen.call(Gate::wait_at, &second);
    });
    Victim holder([&] { foreseen.call(Gate::wait_at, &inside); });
    until([&] { return sleeps_in(mover.tid(), SYS_futex) && sleeps_in(holder.tid(), SYS_futex); });
    const auto is_clean_now = [](int tid, std::uint64_t number) {
      bool clean = false;
      EXPECT_TRUE(inspect([&](Census& census) {
        Thread* thread = census.find(tid);
        clean = thread != nullptr && is_clean(census, *thread, number);
      }));
      return clean;
    };
    const RangeSet next = foreseen.range();
    ProofOptions options;
    options.deadline = Deadline::in_ms(30'000);
    options.foreseen = {&next, 7};
    EXPECT_TRUE(prove(asked.range(), options).out());
    EXPECT_TRUE(is_clean_now(mover.tid(), 7));
    EXPECT_FALSE(is_clean_now(mover.tid(), 8));
    EXPECT_FALSE(is_clean_now(holder.tid(), 7));
    first.open();
    until([&] { return second.waiting() == 1 && sleeps_in(mover.tid(), SYS_futex); });
    EXPECT_FALSE(is_clean_now(mover.tid(), 7));
    second.open();
    inside.open();
  }
}

// Each thread starts the next one inside, and leaves while that has not begun: its stack has nothing of the page then.
// Under a sanitizer it even sleeps there.
TEST(Births, Relay) {
  Code code;
  struct Relay {
    const Code& code;
    Code::Work work;
    std::atomic<bool> stop{false};
    std::atomic<int> runs{0};
    std::atomic<bool> over{false};
    static void* step(void* given) {
      auto* self = static_cast<Relay*>(given);
      ++self->runs;
      if (self->runs % 4 == 0) {
        const timespec t{0, 200'000};
        nanosleep(&t, nullptr);  // tidy: sleep-ok it is to be found asleep
      }
      if (self->stop.load()) {
        self->over = true;
      } else {
        self->code.start_thread(Code::stays, self->work);
      }
      return nullptr;
    }
  } relay{code, {Relay::step, &relay}, {}, {}, {}};
  code.start_thread(Code::stays, relay.work);
  for (int i = 0; i < 100; ++i) {
    ProofOptions options;
    options.deadline = Deadline::in_ms(3);
    EXPECT_FALSE(prove(code.range(), options).out()) << "after " << relay.runs << " threads";
  }
  relay.stop = true;
  until([&] { return relay.over.load(); });
  EXPECT_GT(relay.runs, 10);
  EXPECT_TRUE(prove(code.range(), 30'000).out());
}

// Whether it has begun cannot be seen, so whoever was started there is there.
TEST(Births, StartedThere) {
  if (under_sanitizer()) GTEST_SKIP() << "its wrapper is what the thread was started at";
  Code code;
  Gate gate;
  Code::Work work{[](void* given) -> void* {
                    static_cast<Gate*>(given)->wait();
                    return nullptr;
                  },
                  &gate};
  code.start_thread(Code::leaves, work);
  until([&] { return gate.waiting() == 1; });
  const Proof proof = prove(code.range(), 0);
  ASSERT_EQ(proof.holders.size(), 1u) << texts(proof);
  EXPECT_EQ(proof.holders[0].verdict, Verdict::inside);
  EXPECT_STREQ(proof.holders[0].reason, "it was started to run there");
  RangeSet entered = code.range();
  entered.note_entry(code.begin() + Code::leaves);
  EXPECT_TRUE(prove(entered, 30'000).out());
  gate.open();
  EXPECT_TRUE(prove(code.range(), 30'000).out());
}

// --- other processes in the same memory ----------------------------------------------------------------

TEST(Sharers, CloneOfMemory) {
  Code code;
  constexpr std::size_t size = 64 * 1024;
  void* stack = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  int gate[2];
  ASSERT_EQ(pipe(gate), 0);
  const int child = clone(
      [](void* fd) -> int {
        char c;
        long result;
        asm volatile("syscall"
                     : "=a"(result)
                     : "0"(SYS_read), "D"(*static_cast<int*>(fd)), "S"(&c), "d"(1)
                     : "rcx", "r11", "memory");
        return 0;
      },
      static_cast<char*>(stack) + size - 64, CLONE_VM | SIGCHLD, gate);
  ASSERT_GT(child, 0);
  const Proof proof = prove(code.range(), 0);
  ASSERT_EQ(proof.holders.size(), 1u) << texts(proof);
  EXPECT_EQ(proof.holders[0].tid, child);
  EXPECT_EQ(proof.holders[0].verdict, Verdict::unknown);
  EXPECT_EQ(write(gate[1], "x", 1), 1);
  waitpid(child, nullptr, 0);
  EXPECT_TRUE(prove(code.range(), 30'000).out());
  close(gate[0]);
  close(gate[1]);
  munmap(stack, size);
}

// A child of fork has a copy: it is none of ours.
TEST(Sharers, ForkedChildIsNone) {
  Code code;
  int gate[2];
  ASSERT_EQ(pipe(gate), 0);
  const pid_t child = fork();
  if (child == 0) {
    char c;
    _exit(read(gate[0], &c, 1) == 1 ? 0 : 1);
  }
  const Proof proof = prove(code.range(), 30'000);
  EXPECT_TRUE(proof.out()) << texts(proof);
  EXPECT_EQ(write(gate[1], "x", 1), 1);
  waitpid(child, nullptr, 0);
  close(gate[0]);
  close(gate[1]);
}

struct OldStack {
  const Code& code;
  Gate gate{};
  std::uintptr_t begin = 0, end = 0;  // what of it has addresses in the code
  std::uintptr_t frame = 0;           // of who has it then
};

[[gnu::noinline, gnu::no_sanitize("address")]] void fill_stack(OldStack& old) {
  volatile std::uintptr_t words[1024];
  for (volatile std::uintptr_t& word : words) word = old.code.begin() + 0x10;
  old.begin = reinterpret_cast<std::uintptr_t>(&words[0]);
  old.end = reinterpret_cast<std::uintptr_t>(std::end(words));
}

[[gnu::noinline, gnu::no_sanitize("address")]] void wait_over_old_words(OldStack& old) {
  std::uintptr_t unwritten[256];
  asm volatile("" : : "r"(unwritten) : "memory");
  old.frame = reinterpret_cast<std::uintptr_t>(unwritten);
  old.gate.wait();
  asm volatile("" : : "r"(unwritten) : "memory");
}

// libc gives the stack of a thread that has ended to the next one.
TEST(Proof, AnOwnThreadHasNothingOfWhoHadItsStack) {
  Code code;
  OldStack old{code};
  std::thread([&] { fill_stack(old); }).join();
  const auto thread = start_thread(
      "molt-test", default_stack,
      [](void* given) -> void* {
        wait_over_old_words(*static_cast<OldStack*>(given));
        return nullptr;
      },
      &old);
  ASSERT_TRUE(thread);
  until([&] { return old.gate.waiting() == 1; });
  const bool is_the_same = old.frame >= old.begin && old.frame < old.end;
  const Proof proof = prove(code.range(), 2000);
  old.gate.open();
  pthread_join(*thread, nullptr);
  ASSERT_TRUE(is_the_same) << "the test needs a stack that was used";
  EXPECT_TRUE(proof.out()) << texts(proof);
}

}  // namespace
