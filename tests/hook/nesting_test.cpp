// Hooks called from callbacks, deeper than a thread's record holds, and from signal handlers.
#include <pthread.h>
#include <csignal>

#include "fixture.hpp"

namespace {

// More frames than a record holds (30), and more than two more blocks.
constexpr int deep = 100;

class Nesting : public HookTest {
 protected:
  // Calls hooks `depth` deep, through the modules' callbacks.
  static int descend(int depth) { return on_first(depth); }
  void SetUp() override {
    load_all({"a"});
    board().call = [](const Call& call) {
      return call.argument > 1 ? descend(call.argument - 1) + 1 : 1;
    };
  }
};

TEST_F(Nesting, Deep) {
  EXPECT_EQ(descend(deep), deep);
  EXPECT_TRUE(is(unload("a"), 0));
  unloaded("a");
  EXPECT_EQ(descend(deep), 0);
}

TEST_F(Nesting, ThroughSeveralModulesAndHooks) {
  load_all({"b", "c"});
  constexpr const char* names[] = {"a", "b", "c"};
  std::vector<int> calls(3, 0);
  board().call = [&](const Call& call) {
    ++calls[static_cast<std::size_t>(call.module[0] - 'a')];
    // One of the three goes down at each depth.
    if (call.argument > 0 && call.argument % 3 == call.module[0] - 'a') {
      int next = call.argument - 1;
      if (call.argument % 2) {
        on_all(next);
      } else {
        on_by_name.call_named(names[next % 3], next);
      }
    }
    return 0;
  };
  on_all(deep);
  // Half of the depths ask all three modules, the others one.
  EXPECT_EQ(calls[0] + calls[1] + calls[2], deep / 2 * 4 + 3);
}

// Every depth around the record's end, again and again: frames come and go at the edge.
TEST_F(Nesting, OverTheEdgeRepeatedly) {
  for (int round = 0; round < 200; ++round) {
    for (int depth = 28; depth <= 34; ++depth) ASSERT_EQ(descend(depth), depth);
  }
  for (int round = 0; round < 200; ++round) {
    for (int depth = 58; depth <= 66; ++depth) ASSERT_EQ(descend(depth), depth);
  }
}

// At the edge, the innermost callback calls many hooks one after the other.
TEST_F(Nesting, OverTheEdgeFromOneFrame) {
  int calls = 0;
  board().call = [&](const Call& call) {
    if (call.argument > 1) return descend(call.argument - 1);
    if (call.argument == 1) {
      for (int i = 0; i < 100; ++i) on_all(0), ++calls;
    }
    return 1;
  };
  for (int depth = 28; depth <= 34; ++depth) EXPECT_EQ(descend(depth), 1);
  EXPECT_EQ(calls, 700);
}

// An overflown frame protects like any other.
TEST_F(Nesting, AnOverflownFrameHoldsItsModule) {
  load_all({"b"});
  EXPECT_EQ(molt_disable("a"), 0);
  Answer inside(0);
  board().call = [&](const Call& call) {
    if (call.argument == deep) inside = unload("b", 10);
    if (call.argument == deep) on_by_name.call_named("a", 0);
    return call.argument < deep ? on_first(call.argument + 1) : 1;
  };
  EXPECT_EQ(on_first(1), 1);
  EXPECT_TRUE(is(inside, -EDEADLK, {"b"}));
  EXPECT_EQ(molt_enable("a"), 0);
}

TEST_F(Nesting, ExceptionsFromTheDepth) {
  board().call = [](const Call& call) -> int {
    if (call.argument == 1) throw 1;
    return descend(call.argument - 1) + 1;
  };
  for (int round = 0; round < 50; ++round) EXPECT_EQ(descend(deep), deep - 1);
}

// ---- Signals

std::atomic<long> g_handled{0};
std::atomic<int> g_handler_depth{1};

void call_hooks(int) {
  int saved = errno;
  on_first(g_handler_depth.load(std::memory_order_relaxed));
  g_handled.fetch_add(1, std::memory_order_relaxed);
  errno = saved;
}

class Handler {
 public:
  explicit Handler(int signal) : signal_(signal) {
    struct sigaction action {};
    action.sa_handler = call_hooks;
    action.sa_flags = SA_RESTART;
    sigaction(signal, &action, &old_);
    g_handled.store(0, std::memory_order_relaxed);
    g_handler_depth.store(1, std::memory_order_relaxed);
  }
  ~Handler() { sigaction(signal_, &old_, nullptr); }

 private:
  int signal_;
  struct sigaction old_ {};
};

TEST_F(Nesting, SignalInACallback) {
  Handler handler(SIGUSR1);
  board().call = [](const Call& call) {
    if (call.argument == deep) raise(SIGUSR1);
    return call.argument < deep && call.argument > 1 ? on_first(call.argument + 1) : 1;
  };
  EXPECT_EQ(on_first(2), 1);
  EXPECT_EQ(on_first(deep), 1);
  EXPECT_EQ(g_handled.load(std::memory_order_relaxed), 2);
}

// The first hook call of a thread may be in a handler.
TEST_F(Nesting, SignalInAFreshThread) {
  Handler handler(SIGUSR1);
  std::thread([] { raise(SIGUSR1); }).join();
  EXPECT_EQ(g_handled.load(std::memory_order_relaxed), 1);
  EXPECT_TRUE(is(unload("a"), 0));
  unloaded("a");
}

// Signals at any moment, while modules come and go.
TEST_F(Nesting, SignalsAtAnyTime) {
  if (under_tsan)
    GTEST_SKIP() << "a thread of the thread sanitizer is not proven to be out while it runs: each "
                    "unload takes its whole time";
  Handler handler(SIGUSR1);
  g_handler_depth.store(40, std::memory_order_relaxed);
  std::atomic<bool> over{false};
  std::atomic<pthread_t> self{};
  std::counting_semaphore<> ready{0};
  std::thread caller([&] {
    self.store(pthread_self(), std::memory_order_release);
    ready.release();
    while (!over.load(std::memory_order_acquire)) descend(40);
  });
  ready.acquire();
  std::thread sender([&] {
    while (!over.load(std::memory_order_acquire)) {
      long before = g_handled.load(std::memory_order_acquire);
      pthread_kill(self.load(std::memory_order_acquire), SIGUSR1);
      while (g_handled.load(std::memory_order_acquire) == before &&
             !over.load(std::memory_order_acquire)) {
        std::this_thread::yield();
      }
    }
  });
  for (int round = 0; round < 20; ++round) {
    EXPECT_TRUE(is(load("b"), 0));
    EXPECT_TRUE(is(unload("b"), 0));
  }
  long seen = g_handled.load(std::memory_order_relaxed);
  while (g_handled.load(std::memory_order_relaxed) < seen + 10) std::this_thread::yield();
  over.store(true, std::memory_order_release);
  sender.join();
  caller.join();
  EXPECT_TRUE(is(unload("a"), 0));
  unloaded("a");
}

// ---- A signal after every single instruction

void single_step(bool on) {
  if (on) {
    asm volatile(
        "lea -128(%%rsp), %%rsp; pushfq; orq $0x100, (%%rsp); popfq; lea 128(%%rsp), %%rsp" ::
            : "memory", "cc");
  } else {
    asm volatile(
        "lea -128(%%rsp), %%rsp; pushfq; andq $~0x100, (%%rsp); popfq; lea 128(%%rsp), %%rsp" ::
            : "memory", "cc");
  }
}

class Stepping : public Nesting, public testing::WithParamInterface<int> {
 protected:
  // In a process of its own: what goes wrong is a crash. On a fresh thread: its first hook call
  // makes the record.
  static void run(int depth) {
    std::thread([&] {
      Handler handler(SIGTRAP);
      g_handler_depth.store(GetParam(), std::memory_order_relaxed);
      single_step(true);
      int result = descend(depth);
      int again = descend(depth);
      single_step(false);
      if (result != depth || again != depth) _exit(2);
      if (g_handled.load(std::memory_order_relaxed) < 100) _exit(3);
    }).join();
    int result = molt_unload("a", 0, 100);
    if (result != 0) std::fprintf(stderr, "unload: %s\n", molt_last_error());
    _exit(result == 0 ? 0 : 4);
  }
};

TEST_P(Stepping, OneCall) {
  if (under_tsan) {
    GTEST_SKIP()
        << "the sanitizer's own code is stepped too, and a handler that meets it there with its "
           "trace's lock held waits for itself";
  }
  EXPECT_EXIT(run(1), testing::ExitedWithCode(0), "");
}

TEST_P(Stepping, OverTheEdge) {
  if (under_tsan || under_asan) {
    GTEST_SKIP() << "every instruction of a sanitizer's checks is stepped too: minutes";
  }
  EXPECT_EXIT(run(33), testing::ExitedWithCode(0), "");
}

// Depth of the handler's own calls.
INSTANTIATE_TEST_SUITE_P(HandlerDepth, Stepping, testing::Values(1, 29, 30, 31, 65),
                         testing::PrintToStringParamName());

}  // namespace
