// Callbacks that begin on one thread and end on another.
#include <sys/wait.h>
#include <unistd.h>

#include "fixture.hpp"
#include "parked.hpp"

namespace {

// A coroutine of the host that nobody awaits: it calls the hook's callbacks one after the other.
struct Detached {
  struct promise_type {
    Detached get_return_object() { return {}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() {}
    void unhandled_exception() { std::terminate(); }
  };
};

Detached call_all_async(int argument, std::binary_semaphore& done, std::thread::id* ended_on) {
  {
    auto walk = on_task.walk_async();
    EXPECT_EQ(walk.error(), 0);
    while (auto* callback = walk.next()) co_await callback(argument);
  }
  if (ended_on) *ended_on = std::this_thread::get_id();
  done.release();
}

class Async : public HookTest {
 protected:
  void SetUp() override {
    load_all({"coroutine"});
    parked().numbers.clear();
  }
  // The coroutine's second half, on a thread of its own.
  static std::thread::id resume_elsewhere() {
    std::thread thread([] { parked().handle.resume(); });
    std::thread::id id = thread.get_id();
    thread.join();
    return id;
  }
  std::binary_semaphore done_{0};
};

TEST_F(Async, EndsOnAnotherThread) {
  std::thread::id ended_on;
  call_all_async(5, done_, &ended_on);
  parked().there.acquire();
  EXPECT_EQ(parked().numbers, std::vector<int>{5});
  EXPECT_TRUE(is(unload("coroutine", 10), -ETIMEDOUT, {"coroutine"}));
  std::thread::id other = resume_elsewhere();
  done_.acquire();
  EXPECT_EQ(ended_on, other);
  EXPECT_EQ(parked().numbers, (std::vector<int>{5, -5}));
  EXPECT_TRUE(is(unload("coroutine"), 0));
  unloaded("coroutine");
}

// The thread that began it has ended; unload waits nevertheless, and goes on by itself.
TEST_F(Async, UnloadWaitsForASuspendedCoroutine) {
  std::thread([this] { call_all_async(1, done_, nullptr); }).join();
  parked().there.acquire();
  std::coroutine_handle<> first = parked().handle;
  EXPECT_TRUE(is(unload("coroutine", 10), -ETIMEDOUT));
  call_all_async(2, done_, nullptr);  // it is live again
  parked().there.acquire();
  std::coroutine_handle<> second = parked().handle;
  EXPECT_EQ(parked().numbers, (std::vector<int>{1, 2}));
  EXPECT_EQ(molt_disable("coroutine"), 0) << "does not wait";
  EXPECT_EQ(molt_enable("coroutine"), 0);

  std::atomic<bool> unloading{true};
  std::thread unloader([&] {
    EXPECT_TRUE(is(unload("coroutine", 20000), 0));
    unloading.store(false, std::memory_order_release);
  });
  // Until the module is not entered any more: unload has begun.
  for (bool begun = false; !begun;) {
    auto walk = on_task.walk_async();
    auto* callback = walk.next();
    begun = callback == nullptr;
    std::this_thread::yield();
  }
  EXPECT_TRUE(unloading.load(std::memory_order_acquire)) << "it did not wait";
  second.resume();
  done_.acquire();
  EXPECT_TRUE(unloading.load(std::memory_order_acquire)) << "it did not wait for the first";
  first.resume();
  done_.acquire();
  unloader.join();
  unloaded("coroutine");
}

// Callbacks begin and end at once on many threads, and end on other ones.
TEST_F(Async, ManyThreads) {
  constexpr int threads = 4, rounds = 500;
  std::vector<std::thread> all;
  for (int t = 0; t < threads; ++t) {
    all.emplace_back([] {
      for (int i = 0; i < rounds; ++i) {
        auto walk = on_task.walk_async();
        auto* callback = walk.next();
        if (callback == nullptr) continue;
        // The coroutine was never started; the walk ends on another thread.
        Task task = callback(i);
        if (i % 50 == 0) {
          std::thread([&] {
            Task::Handle::from_address(task.address).destroy();
            EXPECT_EQ(walk.next(), nullptr);
          }).join();
        } else {
          Task::Handle::from_address(task.address).destroy();
        }
      }
    });
  }
  for (int i = 0; i < 10; ++i) {
    EXPECT_TRUE(is(unload("coroutine"), 0));
    EXPECT_TRUE(is(load("coroutine"), 0));
  }
  for (std::thread& thread : all) thread.join();
  EXPECT_TRUE(is(unload("coroutine", 1000), 0));
  unloaded("coroutine");
}

TEST_F(Async, NothingAttached) {
  EXPECT_TRUE(is(unload("coroutine"), 0));
  unloaded("coroutine");
  auto walk = on_task.walk_async();
  EXPECT_EQ(walk.error(), 0);
  EXPECT_EQ(walk.next(), nullptr);
  EXPECT_EQ(walk.next(), nullptr);
}

// A walk that is given up in the middle holds nothing.
TEST_F(Async, GivenUp) {
  {
    auto walk = on_task.walk_async();
    EXPECT_NE(walk.next(), nullptr);
    EXPECT_TRUE(is(unload("coroutine", 10), -ETIMEDOUT));
  }
  EXPECT_TRUE(is(unload("coroutine", 1000), 0));
  unloaded("coroutine");
}

// Order and snapshot are those of a usual call: what comes later is not called, what goes is not.
TEST_F(Async, ChangesDuringTheWalk) {
  load_all({"a", "b"});
  log_calls();
  auto walk = on_all.walk_async();
  auto* callback = walk.next();
  ASSERT_NE(callback, nullptr);
  callback(0);
  load_all({"c"});
  EXPECT_EQ(molt_hook_set_order("hook.all", "b,a"), 0);
  while ((callback = walk.next()) != nullptr) callback(0);
  EXPECT_EQ(log_.take(), "a b");

  auto second = on_all.walk_async();
  callback = second.next();
  callback(0);
  EXPECT_TRUE(is(unload("c"), 0));
  unloaded("c");
  EXPECT_EQ(molt_disable("a"), 0);
  while ((callback = second.next()) != nullptr) callback(0);
  EXPECT_EQ(log_.take(), "b");
  EXPECT_EQ(molt_enable("a"), 0);
}

// A child that forked in the middle can end the walk and unload.
TEST_F(Async, Fork) {
  auto walk = on_task.walk_async();
  ASSERT_NE(walk.next(), nullptr);
  pid_t child = fork();
  if (child == 0) {
    if (molt_unload("coroutine", 0, 10) != -ETIMEDOUT) _exit(3);  // the walk is inside here too
    if (walk.next() != nullptr) _exit(1);
    int result = molt_unload("coroutine", 0, 500);
    if (result != 0) std::fprintf(stderr, "in the child: %s\n", molt_last_error());
    _exit(result == 0 ? 0 : 2);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(walk.next(), nullptr);
}

}  // namespace
