// What one look and one proof say of threads in every state that a thread can be in.

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <vector>

#include "victims.hpp"

namespace {

using namespace molt;
using namespace molt::threads;
using victims::Code;
using victims::Gate;
using victims::sleeps_in;
using victims::until;

Finding look_once(int tid, const RangeSet& ranges) {
  auto finding = look_at(tid, ranges);
  EXPECT_TRUE(finding) << (finding ? "" : finding.error().detail);
  return finding ? *finding : Finding{};
}

Proof prove(const RangeSet& ranges, int timeout_ms = 0) {
  ProofOptions options;
  options.deadline = Deadline::in_ms(timeout_ms);
  options.may_sample = false;
  auto proof = prove_out(ranges, options);
  EXPECT_TRUE(proof) << (proof ? "" : proof.error().detail);
  return proof ? *proof : Proof{};
}

// A thread of the test that says its number and ends when told.
class Victim {
 public:
  explicit Victim(std::function<void()> f) {
    thread_ = std::thread([this, f = std::move(f)] {
      pthread_setname_np(pthread_self(), "victim");
      tid_.store(gettid(), std::memory_order_release);
      f();
    });
    until([&] { return tid() != 0; });
  }
  ~Victim() { thread_.join(); }
  int tid() const { return tid_.load(std::memory_order_acquire); }

 private:
  std::atomic<int> tid_{0};
  std::thread thread_;
};

TEST(Look, SleeperInside) {
  Code code;
  Gate gate;
  {
    Victim victim([&] { code.call(Gate::wait_at, &gate); });
    until([&] { return sleeps_in(victim.tid(), SYS_futex); });
    const Finding f = look_once(victim.tid(), code.range());
    EXPECT_EQ(f.verdict, Verdict::inside);
    EXPECT_EQ(f.activity, Activity::sleeping);
    EXPECT_EQ(f.tid, victim.tid());
    EXPECT_STREQ(f.name, "victim");
    EXPECT_GE(f.address(), code.begin());
    EXPECT_LT(f.address(), code.end());
    EXPECT_EQ(f.depth, f.at - f.sp);
    EXPECT_GT(f.depth, 0u);
    EXPECT_EQ(f.syscall, SYS_futex);
    const Finding later = look_once(victim.tid(), code.range());
    EXPECT_GT(later.asleep_ns, f.asleep_ns);
    gate.open();
  }
}

TEST(Look, SleeperOutside) {
  Code code;
  Gate before, after;
  {
    // It was inside, and has come back: the stack is deeper where it was.
    Victim victim([&] {
      code.call(Gate::wait_at, &before);
      after.wait();
    });
    before.open();
    until([&] { return after.waiting() == 1 && sleeps_in(victim.tid(), SYS_futex); });
    EXPECT_EQ(look_once(victim.tid(), code.range()).verdict, Verdict::out);
    after.open();
  }
}

TEST(Look, RunnerIsUnknown) {
  Code code;
  std::atomic<std::uint32_t> stop{0};
  {
    Victim victim([&] {
      while (stop.load(std::memory_order_relaxed) == 0) {
      }
    });
    const Finding f = look_once(victim.tid(), code.range());
    EXPECT_EQ(f.verdict, Verdict::unknown);
    EXPECT_EQ(f.activity, Activity::running);
    EXPECT_STRNE(f.reason, "");
    stop.store(1, std::memory_order_relaxed);
  }
}

TEST(Look, NoSuchThread) {
  Code code;
  auto finding = look_at(1 << 22, code.range());
  ASSERT_FALSE(finding);
  EXPECT_EQ(finding.error().code, ESRCH);
}

TEST(Look, ThreadThatBlocksAllSignals) {
  Code code;
  Gate gate;
  {
    Victim victim([&] {
      sigset_t all;
      sigfillset(&all);
      pthread_sigmask(SIG_SETMASK, &all, nullptr);
      code.call(Gate::wait_at, &gate);
    });
    until([&] { return sleeps_in(victim.tid(), SYS_futex); });
    EXPECT_EQ(look_once(victim.tid(), code.range()).verdict, Verdict::inside);
    RangeSet elsewhere;
    elsewhere.add(code.begin() + 0x800, code.end());
    EXPECT_EQ(look_once(victim.tid(), elsewhere).verdict, Verdict::out);
    gate.open();
  }
}

TEST(Look, DeepStack) {
  Code code;
  struct Deep {
    Gate gate;
    static void go(void* self) {
      volatile char room[300'000];
      room[0] = 1;
      static_cast<Deep*>(self)->gate.wait();
      room[1] = room[0];
    }
  } deep;
  {
    Victim victim([&] { code.call(Deep::go, &deep); });
    until([&] { return sleeps_in(victim.tid(), SYS_futex); });
    const Finding f = look_once(victim.tid(), code.range());
    EXPECT_EQ(f.verdict, Verdict::inside);
    EXPECT_GT(f.depth, 300'000u);
    deep.gate.open();
  }
}

// A stack that the program gave, with something else above it in the same mapping.
TEST(Look, GivenStack) {
  Code code;
  Gate gate;
  constexpr std::size_t size = 256 * 1024;
  void* memory =
      mmap(nullptr, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  // What lies above is not its stack: no hit.
  static_cast<std::uintptr_t*>(memory)[size / 8 + 100] = code.begin() + 12;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstack(&attributes, memory, size);
  struct Argument {
    Gate* gate;
    std::atomic<int> tid{0};
  } argument{&gate, {}};
  pthread_t thread;
  ASSERT_EQ(pthread_create(
                &thread, &attributes,
                [](void* given) -> void* {
                  auto* a = static_cast<Argument*>(given);
                  a->tid = gettid();
                  a->gate->wait();
                  return nullptr;
                },
                &argument),
            0);
  until([&] { return argument.tid != 0 && sleeps_in(argument.tid, SYS_futex); });
  EXPECT_EQ(look_once(argument.tid, code.range()).verdict, Verdict::out);
  gate.open();
  pthread_join(thread, nullptr);
  munmap(memory, 2 * size);
}

// --- signal handlers ---------------------------------------------------------------------------------

Gate* g_handler_gate;
std::atomic<int> g_in_handler{0};
void sleep_in_handler(int) {
  g_in_handler.fetch_add(1);
  g_handler_gate->wait();
  g_in_handler.fetch_sub(1);
}

enum class Where { own_stack, alternate, alternate_in_own_stack };

// The thread is in the code, is signalled there, and sleeps in the handler.
void look_at_handler(Where where, bool inside) {
  Code code;
  Gate handler_gate;
  g_handler_gate = &handler_gate;
  struct sigaction action {
  }, before;
  action.sa_handler = sleep_in_handler;
  action.sa_flags = where == Where::own_stack ? 0 : SA_ONSTACK;
  sigaction(SIGUSR1, &action, &before);
  std::uint32_t stop = 0;
  {
    Victim victim([&] {
      constexpr std::size_t size = 32768;
      // Above what it will interrupt, as it is this function's.
      alignas(64) char in_own_stack[size];
      stack_t alternate{};
      alternate.ss_size = size;
      alternate.ss_sp = where == Where::alternate_in_own_stack ? in_own_stack : new char[size];
      sigaltstack(&alternate, nullptr);
      asm volatile("" ::"r"(in_own_stack) : "memory");
      if (inside) {
        code.spin(&stop);
      } else {
        while (__atomic_load_n(&stop, __ATOMIC_RELAXED) == 0) {
        }
      }
      stack_t none{};
      none.ss_flags = SS_DISABLE;
      sigaltstack(&none, nullptr);
      if (where != Where::alternate_in_own_stack) delete[] static_cast<char*>(alternate.ss_sp);
    });
    // Wait until it runs where it shall be interrupted.
    usleep(20'000);
    tgkill(getpid(), victim.tid(), SIGUSR1);
    until([&] { return handler_gate.waiting() == 1 && sleeps_in(victim.tid(), SYS_futex); });
    const Finding f = look_once(victim.tid(), code.range());
    EXPECT_EQ(f.verdict, inside ? Verdict::inside : Verdict::out) << f.reason;
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    handler_gate.open();
  }
  sigaction(SIGUSR1, &before, nullptr);
}

TEST(Handler, OwnStackInside) { look_at_handler(Where::own_stack, true); }
TEST(Handler, OwnStackOutside) { look_at_handler(Where::own_stack, false); }
TEST(Handler, AlternateInside) { look_at_handler(Where::alternate, true); }
TEST(Handler, AlternateOutside) { look_at_handler(Where::alternate, false); }
TEST(Handler, AlternateInOwnStackInside) { look_at_handler(Where::alternate_in_own_stack, true); }
TEST(Handler, AlternateInOwnStackOutside) { look_at_handler(Where::alternate_in_own_stack, false); }

}  // namespace
