// Loads at the same time: of the same file, of the same name, of each other.
#include <deque>

#include "fixture.hpp"

namespace {

class Concurrent : public ModuleTest {
 protected:
  // The init of module "probe" waits here, and then answers.
  void hold_init(int answer) {
    board().init = [this, answer](molt_module* self) {
      if (std::string(self->name) != "probe") return 0;
      entered_ = true;
      gate_.wait();
      return answer;
    };
  }
  bool wait_for_init() {
    return eventually([this] { return entered_.load(); });
  }
  Gate gate_;
  std::atomic<bool> entered_{false};
};

class SameFile : public Concurrent, public testing::WithParamInterface<int> {};

TEST_P(SameFile, SharesTheResult) {
  Traces before = Traces::now();
  int result = GetParam();
  hold_init(result);
  Folder folder;
  fs::path copy = folder.copy("probe", "another-name.so");
  fs::path link = folder.path() / "link.so";
  fs::create_symlink(module_file("probe"), link);

  Sleeper first([&] { EXPECT_TRUE(is(load("probe"), result)); });
  ASSERT_TRUE(wait_for_init());
  std::deque<Sleeper> others;
  for (int i = 0; i < 12; ++i) {
    fs::path file = i % 3 == 0 ? module_file("probe") : i % 3 == 1 ? copy : link;
    // What they ask for beside is not looked at: the winner's load is theirs.
    others.emplace_back([=] { EXPECT_TRUE(is(load(file, "number=5"), result)); });
  }
  for (Sleeper& other : others) other.wait_until_asleep();
  for (Sleeper& other : others) EXPECT_FALSE(other.done());
  gate_.open();
  first.join();
  others.clear();
  EXPECT_EQ(board().inits, 1);
  EXPECT_EQ(board().exits, 0);
  if (result == 0) {
    EXPECT_EQ(on_probe(1), 101);
    EXPECT_EQ(molt_module_refcount(descriptor("probe")), 0);
    EXPECT_TRUE(is(unload("probe"), 0));
  }
  expect_gone("probe", before);
  // A failure is shared with those that waited, not kept for those that come later.
  board().init = nullptr;
  EXPECT_TRUE(is(load("probe"), 0));
  EXPECT_TRUE(is(unload("probe"), 0));
}
INSTANTIATE_TEST_SUITE_P(Results, SameFile, testing::Values(0, -ENOMEM, -EIO),
                         [](const auto& given) {
                           return given.param == 0 ? std::string("success")
                                                   : "errno" + std::to_string(-given.param);
                         });

TEST_F(Concurrent, SameNameOtherFileSucceeds) {
  hold_init(0);
  Sleeper first([] { EXPECT_TRUE(is(load("probe"), 0)); });
  ASSERT_TRUE(wait_for_init());
  Sleeper other([] { EXPECT_TRUE(is(load("probe_2"), -EEXIST, {"probe"})); });
  other.wait_until_asleep();
  EXPECT_FALSE(other.done());
  gate_.open();
  other.join();
  first.join();
  EXPECT_EQ(board().inits, 1);
  EXPECT_EQ(on_probe(1), 101);
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Concurrent, SameNameOtherFileFails) {
  hold_init(-EIO);
  Sleeper first([] { EXPECT_TRUE(is(load("probe"), -EIO)); });
  ASSERT_TRUE(wait_for_init());
  Sleeper other([] { EXPECT_TRUE(is(load("probe_2"), -EBUSY, {"probe"})); });
  other.wait_until_asleep();
  gate_.open();
  other.join();
  EXPECT_EQ(board().inits, 1) << "it did not wait, or tried on its own afterwards";
}

TEST_F(Concurrent, WaitingIsBounded) {
  hold_init(0);
  Sleeper first([] { EXPECT_TRUE(is(load("probe"), 0)); });
  ASSERT_TRUE(wait_for_init());
  EXPECT_TRUE(is(load(module_file("probe_2"), nullptr, 0, 30), -EBUSY, {"probe"}));
  EXPECT_TRUE(is(load(module_file("probe"), nullptr, 0, 30), -EBUSY, {"probe"}));
  gate_.open();
  first.join();
  EXPECT_TRUE(is(unload("probe"), 0));
}

// Different modules do not wait for each other.
TEST_F(Concurrent, OthersGoOn) {
  hold_init(0);
  Sleeper first([] { EXPECT_TRUE(is(load("probe"), 0)); });
  ASSERT_TRUE(wait_for_init());
  EXPECT_TRUE(is(load("bare"), 0));
  EXPECT_TRUE(is(load("throwaway"), 0));
  EXPECT_TRUE(is(unload("throwaway"), 0));
  EXPECT_TRUE(is(unload("bare"), 0));
  EXPECT_FALSE(first.done());
  gate_.open();
  first.join();
  EXPECT_TRUE(is(unload("probe"), 0));
}

// ---- A module that loads itself must not wait for itself.

class Recursive : public ModuleTest {
 protected:
  void TearDown() override {
    EXPECT_EQ(board().inits, 1);
    EXPECT_TRUE(is(unload("probe"), 0));
  }
};

TEST_F(Recursive, FromInit) {
  board().init = [](molt_module*) {
    EXPECT_TRUE(is(load("probe"), -EDEADLK, {"probe"}));
    return 0;
  };
  EXPECT_TRUE(is(load("probe"), 0));
}

TEST_F(Recursive, FromInitByAnotherName) {
  Folder folder;
  fs::path copy = folder.copy("probe", "copy.so"), link = folder.path() / "link.so",
           hard = folder.path() / "hard.so";
  fs::create_symlink(module_file("probe"), link);
  fs::create_hard_link(copy, hard);
  board().init = [&](molt_module*) {
    EXPECT_TRUE(is(load(copy), -EDEADLK, {"probe"}));
    EXPECT_TRUE(is(load(link), -EDEADLK, {"probe"}));
    EXPECT_TRUE(is(load(hard), -EDEADLK, {"probe"}));
    EXPECT_TRUE(is(load("probe_2"), -EDEADLK, {"probe"})) << "other file, same name";
    return 0;
  };
  EXPECT_TRUE(is(load("probe"), 0));
}

TEST_F(Recursive, FromAThreadOfTheModule) {
  static std::atomic<bool> done;
  done = false;
  board().init = [](molt_module* self) {
    molt_thread* thread = nullptr;
    EXPECT_EQ(molt_thread_start(
                  self, "inner",
                  [](void*) {
                    EXPECT_TRUE(is(load("probe"), -EDEADLK, {"probe"}));
                    EXPECT_TRUE(is(load("probe_2"), -EDEADLK, {"probe"}));
                    done = true;
                  },
                  nullptr, 0, &thread),
              0);
    molt_thread_stop(thread);
    EXPECT_TRUE(done);
    return 0;
  };
  EXPECT_TRUE(is(load("probe"), 0));
}

// Nobody can know that init waits for this thread; its own timeout has to end it.
TEST_F(Recursive, FromAThreadThatNobodyKnows) {
  board().init = [](molt_module*) {
    std::thread([] {
      EXPECT_TRUE(is(load(module_file("probe"), nullptr, 0, 100), -EBUSY, {"probe"}));
    }).join();
    return 0;
  };
  EXPECT_TRUE(is(load("probe"), 0));
}

TEST_F(Recursive, UnloadsItself) {
  board().init = [](molt_module*) {
    EXPECT_TRUE(is(unload("probe"), -EBUSY, {"probe"}));
    return 0;
  };
  EXPECT_TRUE(is(load("probe"), 0));
  // A callback is inside of its own module: waiting for it to leave would be waiting for itself.
  board().call = [](molt_module*, int) {
    EXPECT_TRUE(is(unload("probe", 0, 200), -EDEADLK, {"probe"}));
    return 1;
  };
  EXPECT_EQ(on_probe(1), 1);
}

// Two modules that load each other, from two threads: one of them is told, none hangs.
TEST_F(Concurrent, CrossedLoads) {
  std::atomic<int> inside{0};
  std::atomic<int> deadlocks{0}, successes{0};
  board().init = [&](molt_module* self) {
    std::string own = self->name;
    if (own != "cross_a" && own != "cross_b") return 0;
    ++inside;
    while (inside < 2) std::this_thread::yield();
    const char* other = own == "cross_a" ? "cross_b" : "cross_a";
    Answer answer = load(module_file(other), nullptr, 0, 5000);
    if (answer.result == -EDEADLK) ++deadlocks;
    if (answer.result == 0) ++successes;
    EXPECT_TRUE(answer.result == -EDEADLK || answer.result == 0) << answer;
    return 0;
  };
  {
    Sleeper a([] { EXPECT_TRUE(is(load("cross_a"), 0)); });
    Sleeper b([] { EXPECT_TRUE(is(load("cross_b"), 0)); });
  }
  EXPECT_EQ(deadlocks, 1);
  EXPECT_EQ(successes, 1);
  EXPECT_TRUE(is(unload("cross_a"), 0));
  EXPECT_TRUE(is(unload("cross_b"), 0));
}

// A module loads others from its init, three deep.
TEST_F(Concurrent, NestedLoads) {
  board().init = [](molt_module* self) {
    if (self->name == std::string("probe"))
      return molt_load(module_file("cross_a").c_str(), nullptr, 0, -1);
    if (self->name == std::string("cross_a"))
      return molt_load(module_file("cross_b").c_str(), nullptr, 0, -1);
    return 0;
  };
  EXPECT_TRUE(is(load("probe"), 0));
  for (const char* name : {"cross_b", "cross_a", "probe"}) EXPECT_TRUE(is(unload(name), 0));
}

// A storm: every thread wants the module, uses it and wants it gone.
TEST_F(Concurrent, Storm) {
  Traces before = Traces::now();
  std::atomic<int> loaded{0};
  {
    std::deque<Sleeper> threads;
    for (int i = 0; i < 8; ++i) {
      threads.emplace_back([&] {
        for (int round = 0; round < 40; ++round) {
          int result = molt_load(module_file("probe").c_str(), nullptr, 0, -1);
          EXPECT_TRUE(result == 0 || result == -EEXIST || result == -EBUSY) << errno_text(result);
          loaded += result == 0;
          int answer = on_probe(1);
          EXPECT_TRUE(answer == 0 || answer == 101) << answer;
          result = molt_unload("probe", 0, -1);
          EXPECT_TRUE(result == 0 || result == -ENOENT || result == -EBUSY || result == -EAGAIN)
              << errno_text(result);
        }
      });
    }
  }
  EXPECT_GT(loaded, 0);
  molt_unload("probe", 0, -1);
  EXPECT_EQ(board().inits, board().exits);
  expect_gone("probe", before);
}

}  // namespace
