// Changes while calls are under way: order, disable, unload, replace, also from inside.
#include <pthread.h>

#include "fixture.hpp"

namespace {

class Change : public HookTest {
 protected:
  // The callback of `module` waits, once per call with argument 1; all are logged.
  void hold(const std::string& module) {
    board().call = [this, module](const Call& call) {
      if (call.argument != 1) return call.argument == 3 ? call.version : 0;
      log_.add(std::string(call.module) + (call.version > 1 ? std::to_string(call.version) : ""));
      if (module == call.module && call.version == 1) barrier_.enter();
      return 0;
    };
  }
  // Calls on_all(1) on another thread until it is held.
  void start() {
    thread_ = std::thread([] {
      pthread_setname_np(pthread_self(), "held-caller");
      on_all(1);
    });
    barrier_.wait_for_one();
  }
  // Lets it go on; what was called in all.
  std::string finish() {
    barrier_.release_all();
    thread_.join();
    return log_.take();
  }
  Barrier barrier_;
  std::thread thread_;
};

TEST_F(Change, OrderDuringACall) {
  load_all({"a", "b", "c", "d"});
  hold("b");
  start();
  EXPECT_EQ(molt_hook_set_order("hook.all", "d,c,b,a"), 0);
  EXPECT_EQ(finish(), "a b c d") << "the rest once, in the old order";
  log_calls();
  EXPECT_EQ(call_all(), "d c b a");
}

TEST_F(Change, OrderBackAndForthDuringACall) {
  load_all({"a", "b", "c", "d"});
  hold("a");
  start();
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(molt_hook_set_order("hook.all", "d,c,b,a"), 0);
    EXPECT_EQ(molt_hook_set_order(nullptr, nullptr), 0);
  }
  EXPECT_EQ(finish(), "a b c d");
}

TEST_F(Change, DisableDuringACall) {
  load_all({"a", "b", "c"});
  hold("a");
  start();
  EXPECT_EQ(molt_disable("b"), 0);
  EXPECT_EQ(molt_disable("a"), 0) << "does not wait for those inside";
  on_all(1);
  EXPECT_EQ(finish(), "a c c");
  EXPECT_EQ(molt_enable("a"), 0);
  EXPECT_EQ(molt_enable("b"), 0);
}

TEST_F(Change, DisableAndEnableDuringACall) {
  load_all({"a", "b", "c"});
  hold("a");
  start();
  EXPECT_EQ(molt_disable("b"), 0);
  EXPECT_EQ(molt_enable("b"), 0);
  EXPECT_EQ(finish(), "a b c");
}

TEST_F(Change, LoadDuringACall) {
  load_all({"a", "b"});
  hold("a");
  start();
  load_all({"c"});
  EXPECT_EQ(finish(), "a b") << "c was not in the snapshot";
}

TEST_F(Change, UnloadDuringACall) {
  load_all({"a", "b", "c"});
  hold("a");
  start();
  EXPECT_TRUE(is(unload("b"), 0)) << "nobody is in b; who sleeps in a does not matter";
  unloaded("b");
  EXPECT_EQ(finish(), "a c");
}

// The one before the sleeper, which that thread has left already.
TEST_F(Change, UnloadOfOneThatWasLeft) {
  load_all({"a", "b", "c"});
  hold("b");
  start();
  EXPECT_TRUE(is(unload("a", 0), 0));
  unloaded("a");
  EXPECT_EQ(finish(), "a b c");
}

TEST_F(Change, UnloadAndLoadDuringACall) {
  load_all({"a", "b", "c"});
  hold("a");
  start();
  for (int i = 0; i < 20; ++i) {
    EXPECT_TRUE(is(unload("b"), 0));
    EXPECT_TRUE(is(load("b"), 0));
  }
  EXPECT_EQ(finish(), "a b c") << "by the version in force when it is reached";
}

TEST_F(Change, ReplaceDuringACall) {
  load_all({"b", "a", "c"});
  hold("b");
  start();
  EXPECT_TRUE(is(replace("a", "a_2"), 0));
  EXPECT_EQ(finish(), "b a2 c");
}

TEST_F(Change, UnloadWithAThreadInsideTimesOut) {
  load_all({"a", "b"});
  hold("a");
  start();
  EXPECT_TRUE(is(unload("a", 20), -ETIMEDOUT, {"a", "held-caller", "hook.all"}));
  EXPECT_EQ(on_by_name.call_named("a", 3), 1) << "while that thread is still inside";
  EXPECT_EQ(finish(), "a b");
  log_calls();
  EXPECT_EQ(call_all(), "a b") << "it is live again, in its place";
}

TEST_F(Change, UnloadWaitsUntilTheThreadIsOut) {
  load_all({"a", "b"});
  hold("a");
  start();
  std::atomic<bool> gone{false};
  std::thread unloader([&] {
    EXPECT_TRUE(is(unload("a", 20000), 0));
    gone.store(true, std::memory_order_release);
  });
  while (on_by_name.call_named("a", 2) != 9) std::this_thread::yield();  // unload has begun
  EXPECT_FALSE(gone.load(std::memory_order_acquire));
  EXPECT_EQ(finish(), "a b");
  unloader.join();
  unloaded("a");
}

TEST_F(Change, ReplaceWithAThreadInside) {
  load_all({"a", "b"});
  hold("a");
  start();
  std::thread replacer([] { EXPECT_TRUE(is(replace("a", "a_2", nullptr, 20000), 0)); });
  // Others go to the successor while that thread is in the old version.
  while (on_by_name.call_named("a", 3) != 2) std::this_thread::yield();
  EXPECT_EQ(finish(), "a b");
  replacer.join();
}

// ---- From inside

TEST_F(Change, FromItsOwnCallback) {
  load_all({"a", "b"});
  int calls = 0;
  board().call = [&](const Call& call) {
    if (std::string("a") != call.module) return 0;
    ++calls;
    EXPECT_TRUE(is(unload("a"), -EDEADLK, {"a"}));
    EXPECT_TRUE(is(replace("a", "a_2"), -EDEADLK, {"a"}));
    return 0;
  };
  on_all(0);
  on_first(0);
  on_by_name.call_named("a", 0);
  EXPECT_EQ(calls, 3);
  log_calls();
  EXPECT_EQ(call_all(), "a b") << "it is live";
}

// Also through the callback of another module.
TEST_F(Change, FromACallbackCalledByIt) {
  load_all({"a", "b"});
  board().call = [&](const Call& call) {
    if (std::string("a") == call.module) return on_by_name.call_named("b", 1);
    EXPECT_TRUE(is(unload("a", 100), -EDEADLK, {"a"}));
    EXPECT_TRUE(is(unload("b", 100), -EDEADLK, {"b"}));
    return 8;
  };
  EXPECT_EQ(on_only_first(0), 8);
}

TEST_F(Change, OthersFromACallback) {
  load_all({"a", "b", "c"});
  board().call = [&](const Call& call) {
    if (call.argument != 1) return 0;
    log_.add(call.module);
    if (std::string("a") == call.module) {
      EXPECT_TRUE(is(unload("b"), 0));
      EXPECT_TRUE(is(load("b"), 0));
      EXPECT_EQ(molt_disable("c"), 0);
      EXPECT_EQ(molt_disable("a"), 0);
      EXPECT_EQ(molt_enable("a"), 0);
    }
    return 0;
  };
  on_all(1);
  EXPECT_EQ(log_.take(), "a b");
  EXPECT_EQ(molt_enable("c"), 0);
}

// ---- Many callers

// A thread that saw a version at one hook never again sees an older one at any.
TEST_F(Change, ReplaceIsOneStepForAllHooks) {
  if (under_tsan)
    GTEST_SKIP() << "a thread of the thread sanitizer is not proven to be out while it runs: each "
                    "unload takes its whole time";
  constexpr int threads = 3;
  int rounds = under_tsan || under_asan ? 15 : 100;
  ASSERT_TRUE(is(load("a", "epoch=1"), 0));
  std::atomic<bool> over{false};
  std::atomic<int> older{0}, none{0};
  std::atomic<long> calls{0};
  board().call = [](const Call& call) { return call.epoch; };
  std::vector<std::thread> all;
  for (int t = 0; t < threads; ++t) {
    all.emplace_back([&, t] {
      int seen = 0;
      long mine = 0;
      auto look = [&](int epoch) {
        if (epoch == 0) none.fetch_add(1, std::memory_order_relaxed);
        if (epoch < seen) older.fetch_add(1, std::memory_order_relaxed);
        seen = std::max(seen, epoch);
        ++mine;
      };
      while (!over.load(std::memory_order_acquire)) {
        look(on_first(0));
        int epoch = on_last(0);
        look(epoch == -EOPNOTSUPP ? 0 : epoch);
        if (t == 0) look(on_by_name.call_named("a", 0));
      }
      calls.fetch_add(mine, std::memory_order_relaxed);
    });
  }
  for (int round = 2; round < 2 + rounds; ++round) {
    std::string args = "epoch=" + std::to_string(round);
    ASSERT_TRUE(is(replace("a", round % 2 ? "a" : "a_2", args.c_str()), 0));
    EXPECT_EQ(on_first(0), round);
  }
  over.store(true, std::memory_order_release);
  for (std::thread& thread : all) thread.join();
  EXPECT_EQ(older.load(std::memory_order_relaxed), 0);
  EXPECT_EQ(none.load(std::memory_order_relaxed), 0) << "calls that reached no version";
  EXPECT_GT(calls.load(std::memory_order_relaxed), 0);
  EXPECT_TRUE(is(unload("a"), 0));
}

// What stays attached is called exactly once by every call, whatever happens to the others.
TEST_F(Change, WhatStaysIsCalledOnce) {
  if (under_tsan)
    GTEST_SKIP() << "a thread of the thread sanitizer is not proven to be out while it runs: each "
                    "unload takes its whole time";
  constexpr int threads = 3;
  load_all({"b", "a", "c"});
  std::atomic<bool> over{false};
  std::atomic<int> wrong{0};
  static thread_local int of_b, of_c;
  board().call = [](const Call& call) {
    of_b += call.module[0] == 'b';
    of_c += call.module[0] == 'c';
    return 0;
  };
  std::vector<std::thread> all;
  for (int t = 0; t < threads; ++t) {
    all.emplace_back([&] {
      while (!over.load(std::memory_order_acquire)) {
        of_b = of_c = 0;
        on_all(0);
        if (of_b != 1 || of_c != 1) wrong.fetch_add(1, std::memory_order_relaxed);
      }
    });
  }
  int rounds = under_tsan || under_asan ? 10 : 60;
  for (int round = 0; round < rounds; ++round) {
    ASSERT_TRUE(is(unload("a"), 0));
    EXPECT_EQ(molt_hook_set_order("hook.all", round % 2 ? "c,b" : "b,c"), 0);
    ASSERT_TRUE(is(load("a"), 0));
    EXPECT_EQ(molt_disable("a"), 0);
    EXPECT_EQ(molt_enable("a"), 0);
    ASSERT_TRUE(is(replace("a", "a_2"), 0));
    EXPECT_EQ(molt_hook_set_order("hook.all", "c,a,b"), 0);
  }
  over.store(true, std::memory_order_release);
  for (std::thread& thread : all) thread.join();
  EXPECT_EQ(wrong.load(std::memory_order_relaxed), 0);
}

}  // namespace
