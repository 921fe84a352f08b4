// Threads that come and go, that fork, that are cancelled or end inside a callback.
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "fixture.hpp"

namespace {

class Threads : public HookTest {
 protected:
  void SetUp() override { load_all({"a"}); }
};

struct Memory {
  long mappings = 0, resident_kb = 0;
  static Memory now() {
    Memory memory;
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) ++memory.mappings;
    long size = 0, pages = 0;
    std::ifstream("/proc/self/statm") >> size >> pages;
    memory.resident_kb = pages * (sysconf(_SC_PAGESIZE) / 1024);
    return memory;
  }
};

// A record belongs to its thread; the next thread takes it over.
TEST_F(Threads, RecordsAreUsedAgain) {
  constexpr int at_once = 8;
  auto churn = [](int threads) {
    for (int i = 0; i < threads; i += at_once) {
      std::vector<std::thread> all;
      for (int t = 0; t < at_once; ++t) {
        // Over the edge, so that threads have a second block of frames too.
        all.emplace_back([t] { EXPECT_EQ(on_first(t % 2 ? 40 : 1), t % 2 ? 40 : 1); });
      }
      for (std::thread& thread : all) thread.join();
    }
  };
  board().call = [](const Call& call) {
    return call.argument > 1 ? on_first(call.argument - 1) + 1 : 1;
  };
  churn(1000);
  Memory before = Memory::now();
  churn(under_tsan || under_asan ? 1000 : 10000);
  Memory after = Memory::now();
  if (!under_tsan && !under_asan) {  // these keep records of their own of every thread
    EXPECT_LE(after.mappings, before.mappings + 8);
    // 9000 records more would be 2.5 MB.
    EXPECT_LE(after.resident_kb, before.resident_kb + 1000);
  }
}

// ---- fork

// The child's verdict: 0, or the line that was not as it should be.
int exit_status(pid_t child) {
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}
#define CHILD_EXPECT(condition)                                                                 \
  do {                                                                                          \
    if (!(condition)) {                                                                         \
      std::fprintf(stderr, "in the child, line %d: %s; last error: %s\n", __LINE__, #condition, \
                   molt_last_error());                                                          \
      _exit(1);                                                                                 \
    }                                                                                           \
  } while (0)

TEST_F(Threads, ForkInACallback) {
  load_all({"b"});
  pid_t child = -1;
  board().call = [&](const Call& call) {
    if (call.argument == 1 && std::string("a") == call.module) {
      child = fork();
      if (child == 0) {
        CHILD_EXPECT(on_first(2) == 2);
        CHILD_EXPECT(molt_unload("a", 0, 100) == -EDEADLK);
        CHILD_EXPECT(molt_unload("b", 0, -1) == 0);
        CHILD_EXPECT(on_by_name.call_named("b", 2) == 9);
      }
      return 0;
    }
    return call.argument;
  };
  int result = on_first(1);
  if (child == 0) {
    CHILD_EXPECT(result == 0);
    CHILD_EXPECT(molt_unload("a", 0, -1) == 0);
    CHILD_EXPECT(on_first(2) == 0);
    CHILD_EXPECT(molt_load(file_of("a").c_str(), nullptr, 0, -1) == 0);
    CHILD_EXPECT(on_first(2) == 2);
    _exit(0);
  }
  EXPECT_EQ(result, 1) << "here b still is";
  EXPECT_EQ(exit_status(child), 0);
  EXPECT_EQ(on_first(2), 2);
}

// Threads that were inside a callback are not in the child.
TEST_F(Threads, ForkWhileOthersAreInside) {
  if (under_tsan) GTEST_SKIP() << "the thread sanitizer allows no threads in a forked child";
  Barrier barrier;
  board().call = [&](const Call& call) {
    if (call.argument == 1) barrier.enter();
    return 1;
  };
  std::thread inside([] { on_first(1); });
  barrier.wait_for_one();
  pid_t child = fork();
  if (child == 0) {
    CHILD_EXPECT(on_first(2) == 1);
    CHILD_EXPECT(molt_unload("a", 0, 5000) == 0);
    CHILD_EXPECT(on_first(2) == 0);
    _exit(0);
  }
  EXPECT_EQ(exit_status(child), 0);
  EXPECT_TRUE(is(unload("a", 10), -ETIMEDOUT)) << "the parent's thread is there";
  barrier.release_all();
  inside.join();
}

TEST_F(Threads, ForkWhileHooksChange) {
  std::atomic<bool> over{false};
  std::counting_semaphore<> ready{0};
  std::thread changer([&] {
    ready.release();
    do {
      EXPECT_EQ(molt_disable("a"), 0);
      EXPECT_EQ(molt_enable("a"), 0);
    } while (!over.load(std::memory_order_acquire));
  });
  ready.acquire();
  for (int i = 0; i < 20; ++i) {
    pid_t child = fork();
    if (child == 0) {
      int answer = on_first(2);
      CHILD_EXPECT(answer == 2 || answer == 0);
      CHILD_EXPECT(molt_load(file_of("b").c_str(), nullptr, 0, 5000) == 0);
      CHILD_EXPECT(on_first(2) == 2);
      _exit(0);
    }
    EXPECT_EQ(exit_status(child), 0);
  }
  over.store(true, std::memory_order_release);
  changer.join();
}

// ---- Ends inside a callback

struct Victim {
  std::counting_semaphore<> entered{0};
  bool unwound = false;
};
Victim* g_victim = nullptr;

void* call_hook(void* depth) {
  on_first(static_cast<int>(reinterpret_cast<std::intptr_t>(depth)));
  return nullptr;
}

struct Unwound {
  ~Unwound() { g_victim->unwound = true; }
};

class Ending : public Threads, public testing::WithParamInterface<int> {
 protected:
  void SetUp() override {
    Threads::SetUp();
    g_victim = &victim_;
  }
  // Runs on_first(depth) on a thread whose innermost callback does `end`.
  pthread_t start(std::function<void()> end) {
    board().call = [end = std::move(end)](const Call& call) {
      if (call.argument > 1) return on_first(call.argument - 1);
      Unwound unwound;
      end();
      return 1;
    };
    pthread_t thread{};
    EXPECT_EQ(pthread_create(&thread, nullptr, call_hook,
                             reinterpret_cast<void*>(static_cast<std::intptr_t>(GetParam()))),
              0);
    return thread;
  }
  void expect_gone(pthread_t thread, void* value) {
    void* result = nullptr;
    EXPECT_EQ(pthread_join(thread, &result), 0);
    EXPECT_EQ(result, value);
    EXPECT_TRUE(victim_.unwound);
    EXPECT_TRUE(is(unload("a", 1000), 0));
    unloaded("a");
  }
  Victim victim_;
};

TEST_P(Ending, PthreadExit) {
  int value = 0;
  pthread_t thread = start([&] { pthread_exit(&value); });
  expect_gone(thread, &value);
}

TEST_P(Ending, PthreadCancel) {
  if (under_asan) {
    GTEST_SKIP()
        << "the address sanitizer takes the frames that a cancelled thread unwinds for live "
           "ones, and stops the process in its destructors";
  }
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  pthread_t thread = start([&] {
    g_victim->entered.release();
    char byte;
    (void)!read(pipe_ends[0], &byte, 1);  // never comes; a point of cancellation
  });
  victim_.entered.acquire();
  EXPECT_TRUE(is(unload("a", 10), -ETIMEDOUT));
  EXPECT_EQ(pthread_cancel(thread), 0);
  expect_gone(thread, PTHREAD_CANCELED);
  close(pipe_ends[0]);
  close(pipe_ends[1]);
}

// A module that was taken out of the chain meanwhile: unwinding goes through the general walk.
TEST_P(Ending, PthreadExitAfterAChange) {
  load_all({"b"});
  EXPECT_EQ(molt_hook_set_order("hook.first", "b,a"), 0);
  Barrier barrier;
  board().call = [&](const Call& call) {
    if (std::string("b") == call.module) {
      if (call.argument == 1) barrier.enter();
      return 0;
    }
    if (call.argument > 1) return on_first(call.argument - 1);
    Unwound unwound;
    pthread_exit(nullptr);
  };
  pthread_t thread{};
  ASSERT_EQ(pthread_create(&thread, nullptr, call_hook,
                           reinterpret_cast<void*>(static_cast<std::intptr_t>(GetParam()))),
            0);
  barrier.wait_for_one();
  EXPECT_EQ(molt_hook_set_order("hook.first", "a,b"), 0);
  barrier.release_all();
  expect_gone(thread, nullptr);
}

INSTANTIATE_TEST_SUITE_P(Depths, Ending, testing::Values(1, 40), testing::PrintToStringParamName());

}  // namespace
