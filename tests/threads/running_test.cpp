// Threads that do not sleep: samples, and the last means.

#include <linux/perf_event.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <ucontext.h>

#include <memory>
#include <vector>

#include "threads/sample.hpp"
#include "threads/signalled.hpp"
#include "victims.hpp"

namespace {

using namespace molt;
using namespace molt::threads;
using victims::Code;
using victims::Gate;
using victims::sleeps_in;
using victims::until;
using victims::Victim;

// A thread that runs, in the code or not, until it is told.
class Runner {
 public:
  explicit Runner(bool inside, bool blocks_signals = false)
      : victim_([this, inside, blocks_signals] {
          if (blocks_signals) {
            sigset_t all;
            sigfillset(&all);
            pthread_sigmask(SIG_SETMASK, &all, nullptr);
          }
          if (inside) {
            code.spin(stop_, ready_);
          } else {
            ready_.store(1, std::memory_order_relaxed);
            while (stop_.load(std::memory_order_relaxed) == 0) {
            }
          }
        }) {
    until([&] { return ready_.load(std::memory_order_relaxed) == 1; });
  }
  ~Runner() { stop_.store(1, std::memory_order_relaxed); }
  int tid() const { return victim_.tid(); }

  Code code;

 private:
  std::atomic<std::uint32_t> stop_{0}, ready_{0};
  Victim victim_;
};

constexpr std::int64_t second_ns = 1'000'000'000;

// Samples need the kernel's permission; a container may refuse it.
Finding sample_of(int tid, const RangeSet& ranges) {
  Finding f;
  EXPECT_TRUE(inspect([&](Census& census) {
    ASSERT_TRUE(census.refresh());
    Thread* thread = census.find(tid);
    ASSERT_NE(thread, nullptr);
    f = sample(census, *thread, ranges, 10 * second_ns);
  }));
  return f;
}
bool is_forbidden(const Finding& f) { return std::strstr(f.reason, "does not let") != nullptr; }

// Events that fire in the kernel are for root, or perf_event_paranoid <= 1.
bool may_watch_switches() {
  perf_event_attr attr{};
  attr.size = sizeof attr;
  attr.type = PERF_TYPE_SOFTWARE;
  attr.config = PERF_COUNT_SW_CONTEXT_SWITCHES;
  return Fd(static_cast<int>(syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0))).get() >= 0;
}

TEST(Sample, Inside) {
  Runner runner(true);
  const Finding f = sample_of(runner.tid(), runner.code.range());
  if (is_forbidden(f)) GTEST_SKIP() << "perf_event_open is forbidden here";
  EXPECT_EQ(f.verdict, Verdict::inside) << f.reason;
  EXPECT_TRUE(f.certain);
  EXPECT_EQ(f.activity, Activity::running);
}

TEST(Sample, Outside) {
  Runner runner(false);
  const Finding f = sample_of(runner.tid(), runner.code.range());
  if (is_forbidden(f)) GTEST_SKIP() << "perf_event_open is forbidden here";
  EXPECT_EQ(f.verdict, Verdict::out) << f.reason;
}

TEST(Sample, ReturnAddressBelow) {
  struct Called {
    std::atomic<std::uint32_t> stop{0}, ready{0};
    static void run(void* given) {
      auto* self = static_cast<Called*>(given);
      // Written to: what the kernel has not mapped yet cuts a sample short.
      volatile char room[20'000];
      for (auto& byte : room) byte = 0;
      self->ready.store(1, std::memory_order_relaxed);
      while (self->stop.load(std::memory_order_relaxed) == 0) {
      }
      room[1] = room[0];
    }
  } called;
  Code code;
  {
    Victim victim([&] { code.call(Called::run, &called); });
    until([&] { return called.ready.load(std::memory_order_relaxed) == 1; });
    const Finding f = sample_of(victim.tid(), code.range());
    called.stop.store(1, std::memory_order_relaxed);
    if (is_forbidden(f)) GTEST_SKIP() << "perf_event_open is forbidden here";
    EXPECT_EQ(f.verdict, Verdict::inside) << f.reason;
    EXPECT_FALSE(f.certain);
    EXPECT_GT(f.depth, 10'000u);
  }
}

// It has the processor for a microsecond at a time, and a clock hardly ever meets it: it is sampled where it leaves
// the processor. (One that yields may be let go on at once, for as long as a clock needs.)
TEST(Sample, WhoRunsForAMicrosecond) {
  if (!may_watch_switches()) GTEST_SKIP() << "events of the kernel are forbidden here";
  std::atomic<bool> stop{false};
  Code code;
  Victim naps([&] {
    while (!stop.load(std::memory_order_relaxed)) {
      const timespec t{0, 50'000};
      nanosleep(&t, nullptr);  // tidy: sleep-ok this is how it leaves the processor
    }
  });
  // Under the address sanitizer it has not begun as long as it was seen in libc alone, but for a sleeper.
  until([&] {
    const auto seen = look_at(naps.tid(), code.range(), 0);
    return seen && seen->verdict == Verdict::out;
  });
  int at_calls = 0;
  constexpr int samples = 8;
  for (int i = 0; i < samples; ++i) {
    const Finding f = sample_of(naps.tid(), code.range());
    EXPECT_EQ(f.verdict, Verdict::out) << f.reason;
    if (f.verdict != Verdict::out) break;
    const auto* next = reinterpret_cast<const unsigned char*>(f.pc ^ RangeSet::mask);
    at_calls += next[-2] == 0x0f && next[-1] == 0x05;  // syscall
  }
  stop.store(true, std::memory_order_relaxed);
  EXPECT_GE(at_calls, samples - 2);  // a clock's luck brings two or so
}

// What a sample cannot hold is not proven.
TEST(Sample, DeepStackIsUnknown) {
  struct Deep {
    std::atomic<std::uint32_t> stop{0}, ready{0};
    __attribute__((noinline)) void run() {
      volatile char room[200'000];
      for (auto& byte : room) byte = 0;
      ready.store(1, std::memory_order_relaxed);
      while (stop.load(std::memory_order_relaxed) == 0) {
      }
      room[1] = room[0];
    }
  } deep;
  Code code;
  {
    Victim victim([&] { deep.run(); });
    until([&] { return deep.ready.load(std::memory_order_relaxed) == 1; });
    const Finding f = sample_of(victim.tid(), code.range());
    deep.stop.store(1, std::memory_order_relaxed);
    if (is_forbidden(f)) GTEST_SKIP() << "perf_event_open is forbidden here";
    EXPECT_EQ(f.verdict, Verdict::unknown);
    EXPECT_NE(std::strstr(f.reason, "deeper"), nullptr) << f.reason;
  }
}

TEST(Proof, RunnersAreSampled) {
  Runner runner(false);
  ProofOptions options;
  options.deadline = Deadline::in_ms(20'000);
  options.own_frame = __builtin_frame_address(0);
  auto proof = prove_out(runner.code.range(), options);
  ASSERT_TRUE(proof);
  if (!proof->out()) {
    const Finding f = sample_of(runner.tid(), runner.code.range());
    if (is_forbidden(f)) GTEST_SKIP() << "perf_event_open is forbidden here";
  }
  EXPECT_TRUE(proof->out()) << proof->holders[0].reason;
  EXPECT_GE(proof->sampled, 1u);
}

// --- the last means --------------------------------------------------------------------------------------

Finding signal_of(int tid, const RangeSet& ranges) {
  Finding f;
  EXPECT_TRUE(inspect([&](Census& census) {
    ASSERT_TRUE(census.refresh());
    Thread* thread = census.find(tid);
    ASSERT_NE(thread, nullptr);
    signal_and_look(census, {&thread, 1}, ranges, 10 * second_ns, &f);
  }));
  return f;
}

TEST(Signalled, Inside) {
  Runner runner(true);
  const Finding f = signal_of(runner.tid(), runner.code.range());
  EXPECT_EQ(f.verdict, Verdict::inside) << f.reason;
  EXPECT_TRUE(f.certain);
}

TEST(Signalled, Outside) {
  Runner runner(false);
  EXPECT_EQ(signal_of(runner.tid(), runner.code.range()).verdict, Verdict::out);
}

// One after the other they would take a turn of the processor each, of all that want it.
TEST(Signalled, ManyAreAskedAtOnce) {
  constexpr std::size_t count = 6;
  Runner inside(true);
  std::vector<std::unique_ptr<Runner>> outside;
  for (std::size_t i = 0; i < count; ++i) outside.push_back(std::make_unique<Runner>(false));
  Finding findings[count + 1];
  ASSERT_TRUE(inspect([&](Census& census) {
    ASSERT_TRUE(census.refresh());
    std::vector<Thread*> all;
    for (const auto& runner : outside) all.push_back(census.find(runner->tid()));
    all.push_back(census.find(inside.tid()));
    signal_and_look(census, all, inside.code.range(), 20 * second_ns, findings);
  }));
  for (std::size_t i = 0; i < count; ++i) {
    EXPECT_EQ(findings[i].tid, outside[i]->tid());
    EXPECT_EQ(findings[i].verdict, Verdict::out) << findings[i].reason;
  }
  EXPECT_EQ(findings[count].verdict, Verdict::inside) << findings[count].reason;
}

TEST(Signalled, ThreadThatBlocksSignalsIsLeftAlone) {
  Runner runner(false, true);
  const Finding f = signal_of(runner.tid(), runner.code.range());
  EXPECT_EQ(f.verdict, Verdict::unknown);
  EXPECT_NE(std::strstr(f.reason, "blocks"), nullptr) << f.reason;
}

// A sleeper is never signalled: its CPU clock stands still.
TEST(Signalled, SleeperIsNotWoken) {
  Code code;
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  std::atomic<int> result{-2};
  {
    Victim victim([&] {
      epoll_event event;
      const int n = epoll_wait(epoll, &event, 1, 1500);
      result = n < 0 ? -errno : n;
    });
    until([&] { return sleeps_in(victim.tid(), SYS_epoll_wait); });
    Finding f;
    ASSERT_TRUE(inspect([&](Census& census) {
      ASSERT_TRUE(census.refresh());
      Thread* thread = census.find(victim.tid());
      signal_and_look(census, {&thread, 1}, code.range(), second_ns / 4, &f);
    }));
    EXPECT_EQ(f.verdict, Verdict::unknown);
    EXPECT_TRUE(sleeps_in(victim.tid(), SYS_epoll_wait));
  }
  EXPECT_EQ(result, 0);
  close(epoll);
}

TEST(Signalled, OnlyWhenAskedAndAfterItsTime) {
  Runner runner(false);
  ProofOptions options;
  options.deadline = Deadline::in_ms(50);
  options.may_sample = false;
  options.own_frame = __builtin_frame_address(0);
  auto proof = prove_out(runner.code.range(), options);
  ASSERT_TRUE(proof);
  EXPECT_FALSE(proof->out());
  EXPECT_EQ(proof->signalled, 0u);
  options.deadline = Deadline::in_ms(30'000);
  options.last_means = LastMeans::signal;
  options.last_means_after = Deadline::in_ms(1);
  proof = prove_out(runner.code.range(), options);
  ASSERT_TRUE(proof);
  EXPECT_TRUE(proof->out());
  EXPECT_GE(proof->signalled, 1u);
}

// The rewind: a system call that the signal interrupts goes on as if nothing had been.
std::atomic<int> g_rewound{0};
void rewind_handler(int, siginfo_t*, void* context) {
  if (rewind_interrupted(*static_cast<ucontext_t*>(context))) g_rewound.fetch_add(1);
}

TEST(Rewind, EpollWaitSeesNoEintr) {
  struct sigaction action {
  }, before;
  action.sa_sigaction = rewind_handler;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  sigaction(SIGUSR2, &action, &before);
  g_rewound = 0;
  const int epoll = epoll_create1(EPOLL_CLOEXEC);
  int pipes[2];
  ASSERT_EQ(pipe(pipes), 0);
  epoll_event wanted{};
  wanted.events = EPOLLIN;
  epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[0], &wanted);
  std::atomic<int> result{-2};
  {
    Victim victim([&] {
      epoll_event event;
      const int n = epoll_wait(epoll, &event, 1, -1);
      result = n < 0 ? -errno : n;
    });
    for (int i = 1; i <= 5; ++i) {
      until([&] { return sleeps_in(victim.tid(), SYS_epoll_wait); });
      tgkill(getpid(), victim.tid(), SIGUSR2);
      until([&] { return g_rewound.load() == i || result != -2; });
    }
    EXPECT_EQ(write(pipes[1], "x", 1), 1);
  }
  EXPECT_EQ(result, 1);
  EXPECT_EQ(g_rewound, 5);
  close(epoll);
  close(pipes[0]);
  close(pipes[1]);
  sigaction(SIGUSR2, &before, nullptr);
}

TEST(Rewind, OnlyInterruptedCalls) {
  ucontext_t context{};
  const unsigned char call[] = {0xb8, 0xe8, 0, 0, 0, 0x0f, 0x05, 0x90};
  context.uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(call + 7);
  context.uc_mcontext.gregs[REG_RAX] = -EAGAIN;
  EXPECT_FALSE(rewind_interrupted(context));
  context.uc_mcontext.gregs[REG_RAX] = -EINTR;
  EXPECT_TRUE(rewind_interrupted(context));
  EXPECT_EQ(context.uc_mcontext.gregs[REG_RAX], 0xe8);
  EXPECT_EQ(context.uc_mcontext.gregs[REG_RIP], reinterpret_cast<greg_t>(call + 5));
  // Not after a system call, whatever the register says.
  context.uc_mcontext.gregs[REG_RAX] = -EINTR;
  context.uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(call + 8);
  EXPECT_FALSE(rewind_interrupted(context));
  // Nor where there is nothing.
  context.uc_mcontext.gregs[REG_RIP] = 16;
  EXPECT_FALSE(rewind_interrupted(context));
}

}  // namespace
