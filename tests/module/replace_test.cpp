// Replacing a live module: state goes from the old version to the new, callers see one of them and
// never none, and every failure leaves the old one working.
#include "fixture.hpp"

namespace {

class Replace : public ModuleTest {
 protected:
  void SetUp() override {
    // What the runtime needs for itself stays.
    ASSERT_TRUE(is(load("bare"), 0));
    ASSERT_TRUE(is(unload("bare"), 0));
    before_ = Traces::now();
    ASSERT_TRUE(is(load("counter_1"), 0));
    EXPECT_EQ(on_probe(5), 1005);
    not_address_ = ~reinterpret_cast<std::uintptr_t>(descriptor("counter"));
  }
  void TearDown() override {
    board().call = nullptr;
    molt_unload("counter", 0, -1);
  }
  // The old version is there, alone, and remembers.
  void expect_untouched() {
    EXPECT_EQ(~reinterpret_cast<std::uintptr_t>(descriptor("counter")), not_address_);
    EXPECT_EQ(on_probe(1), 1006);
    EXPECT_TRUE(is(unload("counter"), 0));
    expect_gone("counter", before_);
  }
  Traces before_;
  std::uintptr_t not_address_ = 0;  // inverted: the address itself, kept here, would bar the unload
};

TEST_F(Replace, StateGoesOver) {
  EXPECT_TRUE(is(replace("counter", "counter_2"), 0));
  EXPECT_EQ(on_probe(1), 2006);
  EXPECT_EQ(board().saves, 1);
  EXPECT_EQ(board().restores, 1);
  EXPECT_EQ(board().inits, 2);
  EXPECT_EQ(board().exits, 1);
  EXPECT_TRUE(is(replace("counter", "counter_3"), 0));
  EXPECT_EQ(on_probe(1), 3007);
  EXPECT_TRUE(is(unload("counter"), 0));
  expect_gone("counter", before_);
}

// Version 1 understands only state 1, version 2 writes state 2.
TEST_F(Replace, RefusedVersion) {
  ASSERT_TRUE(is(replace("counter", "counter_2"), 0));
  EXPECT_TRUE(is(replace("counter", "counter_1"), -EINVAL, {"counter", "2", "1"}));
  EXPECT_EQ(on_probe(1), 2006);
  // Version 4 understands nothing older than 4.
  EXPECT_TRUE(is(replace("counter", "counter_4"), -EINVAL, {"counter", "2", "4"}));
  EXPECT_EQ(on_probe(1), 2007);
  EXPECT_TRUE(is(unload("counter"), 0));
  expect_gone("counter", before_);
}

TEST_F(Replace, SaveFails) {
  board().save = [](molt_module*) { return -EIO; };
  EXPECT_TRUE(is(replace("counter", "counter_2"), -EIO, {"counter"}));
  expect_untouched();
}

TEST_F(Replace, RestoreFails) {
  board().restore = [](molt_module*) { return -EILSEQ; };
  EXPECT_TRUE(is(replace("counter", "counter_2"), -EILSEQ, {"counter"}));
  EXPECT_EQ(board().inits, 2);
  EXPECT_EQ(board().exits, 1) << "the new version's init succeeded: its exit must run";
  expect_untouched();
}

TEST_F(Replace, InitFails) {
  board().init = [](molt_module* self) { return std::string(self->version) == "2" ? -ENODEV : 0; };
  EXPECT_TRUE(is(replace("counter", "counter_2"), -ENODEV, {"counter"}));
  EXPECT_EQ(board().exits, 0);
  expect_untouched();
}

TEST_F(Replace, OtherName) {
  EXPECT_TRUE(is(replace("counter", "probe"), -EINVAL, {"counter", "probe"}));
  expect_untouched();
}

TEST_F(Replace, BadFile) {
  EXPECT_TRUE(is(replace("counter", "no_module"), -ENOEXEC));
  EXPECT_TRUE(is(replace("counter", "there_is_no_such_file"), -ENOENT));
  EXPECT_TRUE(
      is(molt_replace("counter", module_file("counter_2").c_str(), "x=1 version=7", 0, -1), 0));
  EXPECT_EQ(on_probe(1), 2006) << "unknown parameters only warn";
  EXPECT_TRUE(is(unload("counter"), 0));
}

TEST_F(Replace, WithoutState) {
  EXPECT_TRUE(is(unload("counter"), 0));
  ASSERT_TRUE(is(load("probe"), 0));
  EXPECT_TRUE(is(replace("probe", "probe_2"), 0));
  EXPECT_EQ(on_probe(1), 102);
  EXPECT_TRUE(is(unload("probe"), 0));
  expect_gone("probe", before_);
}

TEST_F(Replace, ReferencesRefuse) {
  molt_module* module = molt_module_find_get("counter");
  EXPECT_TRUE(is(replace("counter", "counter_2"), -EAGAIN, {"counter"}));
  EXPECT_EQ(molt_module_put(module), 0);
  expect_untouched();
}

// Callers hammer the hook while versions come and go: none misses the module, none goes back.
TEST_F(Replace, CallersSeeOldThenNew) {
  std::atomic<bool> stop{false};
  std::vector<std::unique_ptr<Sleeper>> callers;
  for (int i = 0; i < 3; ++i) {
    callers.push_back(std::make_unique<Sleeper>([&] {
      int version = 1;
      while (!stop) {
        int now = on_probe(0) / 1000;
        EXPECT_GE(now, version);
        version = now;
        if (now == 0) break;
      }
    }));
  }
  EXPECT_TRUE(is(replace("counter", "counter_2"), 0));
  EXPECT_TRUE(is(replace("counter", "counter_3"), 0));
  stop = true;
  callers.clear();
  EXPECT_EQ(on_probe(1), 3006);
  EXPECT_TRUE(is(unload("counter"), 0));
}

// Nothing that was counted is lost: the old one's last calls are in the state.
TEST_F(Replace, NoCallIsLost) {
  std::atomic<bool> stop{false};
  std::atomic<int> added{0};
  {
    std::vector<std::unique_ptr<Sleeper>> callers;
    for (int i = 0; i < 3; ++i) {
      callers.push_back(std::make_unique<Sleeper>([&] {
        for (int n = 0; n < 300 || !stop; ++n) {
          if (added.load() < 500'000) {
            on_probe(1);
            ++added;
          }
        }
      }));
    }
    const char* files[] = {"counter_2", "counter_3"};
    for (const char* file : files) EXPECT_TRUE(is(replace("counter", file), 0));
    stop = true;
  }
  EXPECT_EQ(on_probe(0), 3005 + added);
  EXPECT_TRUE(is(unload("counter"), 0));
}

// A thread sleeps inside the old version: the pause of all the others is bounded, and the old
// version is as it was.
TEST_F(Replace, PauseIsBounded) {
  Gate gate;
  std::atomic<bool> inside{false};
  board().call = [&](molt_module*, int argument) {
    if (argument == 100) {
      inside = true;
      gate.wait();
    }
    return 0;
  };
  Sleeper sleeper([] { EXPECT_EQ(on_probe(100), 1105); });
  ASSERT_TRUE(eventually([&] { return inside.load(); }));
  auto start = std::chrono::steady_clock::now();
  Answer answer = replace("counter", "counter_2", 50);
  auto took = std::chrono::steady_clock::now() - start;
  EXPECT_TRUE(is(answer, -ETIMEDOUT, {"counter"}));
  EXPECT_LT(took, std::chrono::seconds(5));
  EXPECT_EQ(on_probe(0), 1105) << "the old version does not answer any more";
  gate.open();
  sleeper.join();
  board().call = nullptr;
  EXPECT_TRUE(is(replace("counter", "counter_2"), 0));
  EXPECT_EQ(on_probe(1), 2106);
  EXPECT_TRUE(is(unload("counter"), 0));
  expect_gone("counter", before_);
}

// Calls the hook until it is held up: then a pause has begun.
class HeldUp {
 public:
  HeldUp()
      : caller_([this] {
          while (!stop_) on_probe(0);
        }) {
    caller_.wait_until_asleep();
  }
  ~HeldUp() { stop_ = true; }

 private:
  std::atomic<bool> stop_{false};
  Sleeper caller_;
};

// An asynchronous callback is inside, on no thread in particular. What it still has to call waits for
// the pause, and the pause for it: so the pause lets it pass.
TEST_F(Replace, AsynchronousCallbackNeedsItsModule) {
  auto walk = on_probe.walk_async();
  ASSERT_NE(walk.next(), nullptr);
  Sleeper replacer([] { EXPECT_TRUE(is(replace("counter", "counter_2", 20'000), 0)); });
  HeldUp paused;
  EXPECT_EQ(on_probe(1), 1006);
  EXPECT_EQ(walk.next(), nullptr);
  replacer.join();
  EXPECT_EQ(on_probe(1), 2007);
}

// The only thread of an event loop: while it is held up by one walk it cannot end the other.
TEST_F(Replace, AsynchronousCallbacksOnOneThread) {
  auto first = on_probe.walk_async();
  ASSERT_NE(first.next(), nullptr);
  Sleeper replacer([] { EXPECT_TRUE(is(replace("counter", "counter_2", 20'000), 0)); });
  HeldUp paused;
  auto second = on_probe.walk_async();
  auto* callback = second.next();
  ASSERT_NE(callback, nullptr);
  EXPECT_EQ(callback(1), 1006);
  EXPECT_EQ(first.next(), nullptr);
  EXPECT_EQ(second.next(), nullptr);
  replacer.join();
  EXPECT_EQ(on_probe(1), 2007);
}

// A callback gives work to another thread and waits for it.
TEST_F(Replace, CallbackNeedsAnotherThread) {
  Gate paused;
  std::atomic<bool> inside{false};
  board().call = [&](molt_module*, int argument) {
    if (argument != 100) return 0;
    inside = true;
    paused.wait();
    std::thread([] { EXPECT_EQ(on_probe(1), 1106); }).join();
    return 0;
  };
  Sleeper caller([] { on_probe(100); });
  ASSERT_TRUE(eventually([&] { return inside.load(); }));
  Sleeper replacer([] { EXPECT_TRUE(is(replace("counter", "counter_2", 20'000), 0)); });
  HeldUp other;
  paused.open();
  caller.join();
  replacer.join();
  EXPECT_EQ(on_probe(1), 2107);
}

// A thread that is inside begins a walk, in the middle of the pause: as with a usual call it goes on.
TEST_F(Replace, CallbackBeginsAnAsynchronousWalk) {
  Gate paused;
  std::atomic<bool> inside{false};
  board().call = [&](molt_module*, int argument) {
    if (argument != 100) return 0;
    inside = true;
    paused.wait();
    auto walk = on_probe.walk_async();
    auto* callback = walk.next();
    EXPECT_NE(callback, nullptr);
    if (callback) {
      EXPECT_EQ(callback(1), 1106);
    }
    return 0;
  };
  Sleeper caller([] { on_probe(100); });
  ASSERT_TRUE(eventually([&] { return inside.load(); }));
  Sleeper replacer([] { EXPECT_TRUE(is(replace("counter", "counter_2", 20'000), 0)); });
  HeldUp other;
  paused.open();
  caller.join();
  replacer.join();
  EXPECT_EQ(on_probe(1), 2107);
}

// The thread that hands over skips the module, also in a walk: nobody else could end the wait.
TEST_F(Replace, SaveBeginsAnAsynchronousWalk) {
  board().save = [](molt_module*) {
    auto walk = on_probe.walk_async();
    EXPECT_EQ(walk.next(), nullptr);
    return 0;
  };
  EXPECT_TRUE(is(replace("counter", "counter_2"), 0));
  EXPECT_EQ(on_probe(1), 2006);
}

// A live hand-over does not wait for the sleeper before it switches.
TEST_F(Replace, LiveHandover) {
  EXPECT_TRUE(is(unload("counter"), 0));
  ASSERT_TRUE(is(load("counter_live_1"), 0));
  EXPECT_EQ(on_probe(5), 1005);
  Gate gate;
  std::atomic<bool> inside{false};
  board().call = [&](molt_module* self, int argument) {
    if (argument == 100 && std::string(self->version) == "1") {
      inside = true;
      gate.wait();
    }
    return 0;
  };
  Sleeper sleeper([] { EXPECT_EQ(on_probe(100), 1105); });
  ASSERT_TRUE(eventually([&] { return inside.load(); }));
  Sleeper replacer([] { EXPECT_TRUE(is(replace("counter", "counter_live_2", 20'000), 0)); });
  EXPECT_TRUE(eventually([] { return on_probe(0) / 1000 == 2; }))
      << "callers wait for somebody who sleeps";
  EXPECT_FALSE(sleeper.done());
  gate.open();
  sleeper.join();
  replacer.join();
  EXPECT_GE(board().saves, 2);
  EXPECT_EQ(on_probe(1), 2106) << "what the last caller of the old version added is lost";
  EXPECT_TRUE(is(unload("counter"), 0));
  expect_gone("counter", before_);
}

// Each version takes of what the process has for such variables, and never gives it back: the one
// that finds none left is refused in words, and the last one works on.
TEST_F(Replace, UntilStaticTlsIsUsedUp) {
  EXPECT_TRUE(is(unload("counter"), 0));
  ASSERT_TRUE(is(load("with_static_tls"), 0));
  Answer answer = 0;
  for (int i = 0; i < 1000 && answer.result == 0; ++i) {
    answer = replace("with_static_tls", "with_static_tls");
  }
  EXPECT_TRUE(is(answer, -ENOEXEC, {"with_static_tls", "thread-local", "-ftls-model"}));
  EXPECT_EQ(on_probe(5), 5);
  EXPECT_TRUE(is(unload("with_static_tls"), 0));
}

// A user of the old version's export would be left with an address of nothing.
TEST_F(Replace, WithUsers) {
  EXPECT_TRUE(is(unload("counter"), 0));
  ASSERT_TRUE(is(load("provider"), 0));
  ASSERT_TRUE(is(load("user"), 0));
  EXPECT_TRUE(is(replace("provider", "provider"), -EAGAIN, {"user"}));
  EXPECT_TRUE(is(unload("user"), 0));
  EXPECT_TRUE(is(unload("provider"), 0));
}

}  // namespace
