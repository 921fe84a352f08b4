// What one look and one proof say of threads in every state that a thread can be in.

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <ucontext.h>

#include <vector>

#include "victims.hpp"

namespace {

using namespace molt;
using namespace molt::threads;
using victims::Code;
using victims::Gate;
using victims::sleeps_in;
using victims::until;
using victims::Victim;

Finding look_once(int tid, const RangeSet& ranges) {
  auto finding = look_at(tid, ranges);
  EXPECT_TRUE(finding) << (finding ? "" : finding.error().detail);
  return finding ? *finding : Finding{};
}

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

// A word that no frame returns by, as the tools' side tells (testify()), until the thread has run.
TEST(Look, TestimonyHoldsWhileTheThreadSleeps) {
  Code code;
  Gate first, second;
  {
    std::atomic<std::uintptr_t> at{0};
    Victim victim([&] {
      volatile std::uintptr_t word = code.begin() + 1;
      at.store(reinterpret_cast<std::uintptr_t>(&word), std::memory_order_release);
      first.wait();
      word = code.begin() + 1;
      second.wait();
      word = 0;
    });
    until([&] { return first.waiting() == 1 && sleeps_in(victim.tid(), SYS_futex); });
    const Finding f = look_once(victim.tid(), code.range());
    ASSERT_EQ(f.verdict, Verdict::inside);
    ASSERT_EQ(f.at, at.load(std::memory_order_acquire));
    std::uint64_t runs = 0;
    ASSERT_TRUE(inspect([&](Census& census) { runs = census.find(victim.tid())->runs; }));
    const auto code_of = [](const Status& status) { return status ? 0 : status.error().code; };
    const Testimony stale{runs, f.sp, f.at + 8, {}};
    const Testimony live{runs, f.sp, f.at + 8, {f.at}};
    const Testimony short_of_it{runs, f.sp, f.at, {}};
    const Testimony older{runs - 1, f.sp, f.at + 8, {}};

    EXPECT_EQ(code_of(testify(victim.tid(), f.serial + 1000, stale)), ESRCH);
    EXPECT_EQ(code_of(testify(victim.tid(), f.serial, older)), EAGAIN);
    EXPECT_EQ(look_once(victim.tid(), code.range()).verdict, Verdict::inside);
    for (const Testimony& t : {live, short_of_it}) {
      ASSERT_TRUE(testify(victim.tid(), f.serial, t));
      EXPECT_EQ(look_once(victim.tid(), code.range()).verdict, Verdict::inside);
    }
    ASSERT_TRUE(testify(victim.tid(), f.serial, stale));
    EXPECT_EQ(look_once(victim.tid(), code.range()).verdict, Verdict::out);
    first.open();
    until([&] { return second.waiting() == 1 && sleeps_in(victim.tid(), SYS_futex); });
    EXPECT_EQ(look_once(victim.tid(), code.range()).verdict, Verdict::inside);
    second.open();
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

// --- addresses in registers ---------------------------------------------------------------------------

// nanosleep(rdi), with the return address in a register meanwhile, as glibc's vfork has it.
asm(R"(
  .pushsection .text
  sleep_without_return_address:
    pop %r8
    xor %esi, %esi
    mov $35, %eax
    syscall
    push %r8
    ret
  .popsection
)");
extern "C" void sleep_without_return_address(void* time);

TEST(Look, ReturnAddressInAnArgument) {
  Code code;
  timespec time{0, 300'000'000};
  {
    Victim victim([&] { code.call(sleep_without_return_address, &time); });
    until([&] { return sleeps_in(victim.tid(), SYS_nanosleep); });
    const Finding f = look_once(victim.tid(), code.range());
    EXPECT_EQ(f.verdict, Verdict::inside);
    EXPECT_EQ(f.at, 0u);
    EXPECT_EQ(f.hits, 1u);
  }
}

struct Vforked {
  int pipe[2];
  __attribute__((noinline)) void go() {
    const pid_t child = vfork();
    if (child == 0) {
      char c;
      _exit(read(pipe[0], &c, 1) == 1 ? 0 : 1);
    }
    int status;
    waitpid(child, &status, 0);
  }
};

TEST(Look, VforkedParent) {
  Code code;
  Vforked vforked;
  ASSERT_EQ(pipe(vforked.pipe), 0);
  {
    Victim victim([&] { vforked.go(); });
    until([&] { return sleeps_in(victim.tid(), SYS_vfork); });
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    // A sanitizer's vfork keeps the return address in memory of its own instead.
    // The function that called vfork has its return address in a register only.
    void (Vforked::*member)() = &Vforked::go;
    std::uintptr_t begin;
    std::memcpy(&begin, &member, sizeof begin);
    RangeSet function;
    function.add(begin, begin + 64);
    const Finding inside = look_once(victim.tid(), function);
    EXPECT_EQ(inside.verdict, Verdict::inside);
    EXPECT_TRUE(inside.certain);
    EXPECT_EQ(inside.at, 0u);
#endif
    // And elsewhere, while the child runs on its stack, nothing is proven.
    const Finding f = look_once(victim.tid(), code.range());
    EXPECT_EQ(f.verdict, Verdict::unknown);
    EXPECT_NE(std::strstr(f.reason, "child"), nullptr) << f.reason;
    EXPECT_EQ(write(vforked.pipe[1], "x", 1), 1);
  }
  close(vforked.pipe[0]);
  close(vforked.pipe[1]);
}

// --- threads that glibc has not made ------------------------------------------------------------------

// Runs on a stack of its own, with no thread pointer of its own, and uses no libc.
struct Raw {
  const Code* code;
  std::atomic<std::uint32_t> gate{0};
  std::atomic<std::uint32_t> ended{0};  // the kernel clears it, and wakes
  bool inside;

  static void wait(void* given) {
    auto* raw = static_cast<Raw*>(given);
    long result;
    do {
      asm volatile("xor %%r10d, %%r10d\n syscall"
                   : "=a"(result)
                   : "0"(SYS_futex), "D"(&raw->gate), "S"(FUTEX_WAIT_PRIVATE), "d"(0)
                   : "rcx", "r11", "r10", "memory");
    } while (raw->gate.load(std::memory_order_relaxed) == 0);
  }
  static int run(void* given) {
    auto* raw = static_cast<Raw*>(given);
    if (raw->inside) {
      raw->code->call(wait, given);
    } else {
      wait(given);
    }
    asm volatile("syscall" : : "a"(SYS_exit), "D"(0) : "rcx", "r11", "memory");
    __builtin_unreachable();
  }
};

void look_at_raw(bool inside) {
  Code code;
  constexpr std::size_t size = 64 * 1024;
  void* stack = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  Raw raw{&code, {}, {1}, inside};
  const int tid = clone(Raw::run, static_cast<char*>(stack) + size - 64,
                        CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD |
                            CLONE_SYSVSEM | CLONE_CHILD_CLEARTID,
                        &raw, nullptr, nullptr, &raw.ended);
  ASSERT_GT(tid, 0);
  until([&] { return sleeps_in(tid, SYS_futex); });
  EXPECT_EQ(look_once(tid, code.range()).verdict, inside ? Verdict::inside : Verdict::out);
  raw.gate.store(1, std::memory_order_release);
  futex_wake_all(raw.gate);
  while (raw.ended.load(std::memory_order_acquire) != 0) {
    syscall(SYS_futex, &raw.ended, FUTEX_WAIT, 1, nullptr, nullptr, 0);
  }
  munmap(stack, size);
}

TEST(Raw, Inside) { look_at_raw(true); }
TEST(Raw, Outside) { look_at_raw(false); }

// --- stacks that are not the thread's own ----------------------------------------------------------------

// A thread that has switched to a stack of the program's making: where its other frames are, nobody
// knows.
struct Fiber {
  Gate gate;
  ucontext_t main, other;
  static void run(unsigned high, unsigned low) {
    auto* self = reinterpret_cast<Fiber*>(std::uintptr_t{high} << 32 | low);
    self->gate.wait();
  }
};

TEST(Look, ForeignStackIsUnknown) {
  Code code;
  Fiber fiber;
  std::vector<char> stack(128 * 1024);
  {
    Victim victim([&] {
      getcontext(&fiber.other);
      fiber.other.uc_stack.ss_sp = stack.data();
      fiber.other.uc_stack.ss_size = stack.size();
      fiber.other.uc_link = &fiber.main;
      const auto self = reinterpret_cast<std::uintptr_t>(&fiber);
      makecontext(&fiber.other, reinterpret_cast<void (*)()>(Fiber::run), 2,
                  static_cast<unsigned>(self >> 32), static_cast<unsigned>(self));
      swapcontext(&fiber.main, &fiber.other);
    });
    until([&] { return sleeps_in(victim.tid(), SYS_futex); });
    const Finding f = look_once(victim.tid(), code.range());
    EXPECT_EQ(f.verdict, Verdict::unknown);
    EXPECT_NE(std::strstr(f.reason, "stack"), nullptr) << f.reason;
    fiber.gate.open();
  }
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
  std::atomic<std::uint32_t> stop{0}, ready{0};
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
        code.spin(stop, ready);
      } else {
        ready.store(1, std::memory_order_relaxed);
        while (stop.load(std::memory_order_relaxed) == 0) {
        }
      }
      stack_t none{};
      none.ss_flags = SS_DISABLE;
      sigaltstack(&none, nullptr);
      if (where != Where::alternate_in_own_stack) delete[] static_cast<char*>(alternate.ss_sp);
    });
    until([&] { return ready.load(std::memory_order_relaxed) == 1; });
    tgkill(getpid(), victim.tid(), SIGUSR1);
    until([&] { return handler_gate.waiting() == 1 && sleeps_in(victim.tid(), SYS_futex); });
    const Finding f = look_once(victim.tid(), code.range());
    EXPECT_EQ(f.verdict, inside ? Verdict::inside : Verdict::out) << f.reason;
    stop.store(1, std::memory_order_relaxed);
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
