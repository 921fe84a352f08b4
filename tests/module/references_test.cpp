// References, dependencies, threads of modules, notifiers and offers: who may still need a module,
// and what happens to a module that is needed.
#include "fixture.hpp"

namespace {

// ---- The count.

class References : public ModuleTest {
 protected:
  void SetUp() override { ASSERT_TRUE(is(load("probe"), 0)); }
};

TEST_F(References, HeldModuleStays) {
  molt_module* module = molt_module_find_get("probe");
  ASSERT_NE(module, nullptr);
  EXPECT_EQ(molt_module_refcount(module), 1);
  EXPECT_TRUE(is(unload("probe"), -EAGAIN, {"probe"}));
  EXPECT_EQ(molt_module_get_state(module), MOLT_MODULE_STATE_LIVE);
  EXPECT_EQ(on_probe(1), 101) << "the refused unload took the callbacks away";
  molt_module_get(module);
  EXPECT_EQ(molt_module_refcount(module), 2);
  EXPECT_EQ(molt_module_put(module), 0);
  EXPECT_EQ(molt_module_put(module), 0);
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(References, PutTooMany) {
  molt_module* module = descriptor("probe");
  EXPECT_EQ(molt_module_refcount(module), 0);
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(is(molt_module_put(module), -EINVAL, {"probe"}));
    EXPECT_EQ(molt_module_refcount(module), 0);
    EXPECT_EQ(molt_module_get_state(module), MOLT_MODULE_STATE_LIVE);
  }
  EXPECT_TRUE(molt_module_try_get(module));
  EXPECT_EQ(molt_module_refcount(module), 1);
  EXPECT_EQ(molt_module_put(module), 0);
  EXPECT_TRUE(is(molt_module_put(module), -EINVAL));
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(References, NullIsAlwaysThere) {
  EXPECT_TRUE(molt_module_try_get(nullptr));
  molt_module_get(nullptr);
  EXPECT_EQ(molt_module_put(nullptr), 0);
  EXPECT_EQ(molt_module_find_get("nosuch"), nullptr);
  EXPECT_EQ(molt_module_find_get(""), nullptr);
  EXPECT_TRUE(is(unload("probe"), 0));
}

// Takers and an unloader at once: a reference that was taken keeps the module, and at the end
// nothing is lost.
TEST_F(References, TakersAgainstUnloader) {
  if (under_tsan) GTEST_SKIP() << not_under_tsan;
  std::atomic<bool> stop{false};
  std::atomic<long> taken{0};
  std::vector<std::unique_ptr<Sleeper>> takers;
  for (int i = 0; i < 4; ++i) {
    takers.push_back(std::make_unique<Sleeper>([&] {
      while (!stop) {
        if (molt_module* module = molt_module_find_get("probe")) {
          EXPECT_EQ(molt_module_get_state(module), MOLT_MODULE_STATE_LIVE);
          EXPECT_GE(molt_module_refcount(module), 1);
          taken.fetch_add(1);
          EXPECT_EQ(molt_module_put(module), 0);
        }
      }
    }));
  }
  int cycles = 0;
  EXPECT_TRUE(eventually([&] {
    int result = molt_unload("probe", 0, -1);
    if (result == 0) {
      ++cycles;
      EXPECT_TRUE(is(load("probe"), 0));
    } else {
      EXPECT_EQ(errno_text(result), "-EAGAIN");
    }
    return cycles >= 20 && taken >= 1000;
  })) << cycles
      << " cycles, " << taken.load() << " references";
  stop = true;
  takers.clear();
  EXPECT_TRUE(is(unload("probe"), 0));
}

// ---- Dependencies.

class Dependencies : public ModuleTest {};

TEST_F(Dependencies, HolderByName) {
  ASSERT_TRUE(is(load("provider"), 0));
  ASSERT_TRUE(is(load("user"), 0));
  molt_module* provider = descriptor("provider");
  EXPECT_EQ(molt_module_refcount(provider), 1);
  EXPECT_TRUE(is(unload("provider"), -EAGAIN, {"provider", "user"}));
  EXPECT_TRUE(is(unload("provider", MOLT_UNLOAD_RESIDENT), -EAGAIN, {"user"}));
  ASSERT_TRUE(is(load("user_reserved"), 0));
  EXPECT_EQ(molt_module_refcount(provider), 2);
  EXPECT_TRUE(is(unload("user"), 0));
  EXPECT_TRUE(is(unload("provider"), -EAGAIN, {"user_reserved"}));
  EXPECT_TRUE(is(unload("user_reserved"), 0));
  EXPECT_EQ(molt_module_refcount(provider), 0);
  EXPECT_TRUE(is(unload("provider"), 0));
}

TEST_F(Dependencies, OnePairOneReference) {
  ASSERT_TRUE(is(load("provider"), 0));
  ASSERT_TRUE(is(load("user_twice"), 0));
  EXPECT_EQ(molt_module_refcount(descriptor("provider")), 1);
  EXPECT_TRUE(is(unload("user_twice"), 0));
  EXPECT_TRUE(is(unload("provider"), 0));
}

TEST_F(Dependencies, MissingIsRefusedByName) {
  Traces before = Traces::now();
  EXPECT_TRUE(is(load("user"), -ENOENT, {"provided"}));
  EXPECT_EQ(before.since(), "");
  ASSERT_TRUE(is(load("user_optional"), 0));
  EXPECT_EQ(board().all_told(), std::vector<std::string>{"has it not"});
  EXPECT_TRUE(is(unload("user_optional"), 0));
}

TEST_F(Dependencies, OptionalHoldsWhenThere) {
  ASSERT_TRUE(is(load("provider"), 0));
  ASSERT_TRUE(is(load("user_optional"), 0));
  EXPECT_EQ(board().all_told(), std::vector<std::string>{"has it"});
  EXPECT_TRUE(is(unload("provider"), -EAGAIN, {"user_optional"}));
  EXPECT_TRUE(is(unload("user_optional"), 0));
  EXPECT_TRUE(is(unload("provider"), 0));
}

TEST_F(Dependencies, OtherTypeIsRefused) {
  ASSERT_TRUE(is(load("provider"), 0));
  Answer answer = load("user_wrong_type");
  EXPECT_TRUE(answer.result == -EINVAL || answer.result == -ENOEXEC || answer.result == -ENOENT)
      << answer;
  EXPECT_NE(answer.reason.find("i32(i32)"), std::string::npos) << answer;
  EXPECT_EQ(molt_module_refcount(descriptor("provider")), 0);
  EXPECT_TRUE(is(unload("provider"), 0));
}

TEST_F(Dependencies, RestrictedNeedsAFreeLicence) {
  ASSERT_TRUE(is(load("provider"), 0));
  EXPECT_TRUE(is(load("user_reserved_closed"), -ENOENT, {"reserved", "licensed"}));
  EXPECT_EQ(molt_module_refcount(descriptor("provider")), 0);
  EXPECT_TRUE(is(load("user_closed"), 0)) << "the other export is for everybody";
  EXPECT_TRUE(is(unload("user_closed"), 0));
  EXPECT_TRUE(is(unload("provider"), 0));
}

TEST_F(Dependencies, DuplicateExportNamesTheOwner) {
  Traces before = Traces::now();
  ASSERT_TRUE(is(load("provider"), 0));
  EXPECT_TRUE(is(load("exports_provided"), -ENOEXEC, {"provided", "provider"}));
  EXPECT_TRUE(is(unload("provider"), 0));
  EXPECT_TRUE(is(load("exports_provided"), 0));
  EXPECT_TRUE(is(unload("exports_provided"), 0));
  EXPECT_EQ(before.since(), "");
}

// A user that waits for its provider's init gives up when told to.
TEST_F(Dependencies, WaitForComingProvider) {
  Gate gate;
  std::atomic<bool> entered{false};
  board().init = [&](molt_module* self) {
    if (std::string(self->name) == "provider") {
      entered = true;
      gate.wait();
    }
    return 0;
  };
  Sleeper loader([] { EXPECT_TRUE(is(load("provider"), 0)); });
  ASSERT_TRUE(eventually([&] { return entered.load(); }));
  EXPECT_TRUE(is(load(module_file("user"), nullptr, 0, 30), -EBUSY, {"provider"}));
  Sleeper user([] { EXPECT_TRUE(is(load("user"), 0)); });
  user.wait_until_asleep();
  EXPECT_FALSE(user.done());
  gate.open();
  user.join();
  EXPECT_TRUE(is(unload("user"), 0));
  loader.join();
  EXPECT_TRUE(is(unload("provider"), 0));
}

TEST_F(Dependencies, ProviderThatFails) {
  Gate gate;
  std::atomic<bool> entered{false};
  board().init = [&](molt_module*) {
    entered = true;
    gate.wait();
    return -EIO;
  };
  Sleeper loader([] { EXPECT_TRUE(is(load("provider"), -EIO)); });
  ASSERT_TRUE(eventually([&] { return entered.load(); }));
  Sleeper user([] { EXPECT_TRUE(is(load("user"), -ENOENT, {"provided"})); });
  user.wait_until_asleep();
  gate.open();
}

TEST_F(Dependencies, ProviderThatGoes) {
  Gate gate;
  std::atomic<bool> entered{false};
  board().exit = [&](molt_module*) {
    entered = true;
    gate.wait();
  };
  ASSERT_TRUE(is(load("provider"), 0));
  Sleeper unloader([] { EXPECT_TRUE(is(unload("provider"), 0)); });
  ASSERT_TRUE(eventually([&] { return entered.load(); }));
  EXPECT_TRUE(is(load("user"), -ENOENT, {"provided"}));
  gate.open();
}

// ---- Threads of modules.

class Threads : public ModuleTest {
 protected:
  void SetUp() override { ASSERT_TRUE(is(load("probe"), 0)); }
};

struct Held {
  Gate gate;
  molt_module* module = nullptr;
  std::atomic<int> refcount{0};
  std::atomic<bool> stopped{false};
};

TEST_F(Threads, HoldTheirModule) {
  molt_module* module = descriptor("probe");
  Held run;
  run.module = module;  // looking for it takes a reference for a moment
  molt_thread* thread = nullptr;
  ASSERT_TRUE(is(molt_thread_start(
                     module, "keeper",
                     [](void* raw) {
                       auto* self = static_cast<Held*>(raw);
                       self->refcount = molt_module_refcount(self->module);
                       self->gate.wait();
                     },
                     &run, 0, &thread),
                 0));
  // From before it runs ...
  EXPECT_EQ(molt_module_refcount(module), 1);
  EXPECT_TRUE(is(unload("probe"), -EAGAIN, {"keeper"}));
  ASSERT_TRUE(eventually([&] { return run.refcount != 0; }));
  EXPECT_GE(run.refcount, 1);
  run.gate.open();
  molt_thread_stop(thread);
  // ... until it has ended.
  EXPECT_EQ(molt_module_refcount(module), 0);
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Threads, WithoutAHandle) {
  molt_module* module = descriptor("probe");
  Held run;
  ASSERT_TRUE(is(molt_thread_start(
                     module, "alone", [](void* raw) { static_cast<Held*>(raw)->gate.wait(); }, &run,
                     0, nullptr),
                 0));
  EXPECT_TRUE(is(unload("probe"), -EAGAIN, {"alone"}));
  run.gate.open();
  EXPECT_TRUE(eventually([&] { return molt_module_refcount(module) == 0; }));
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Threads, StoppableOnesAreAsked) {
  molt_module* module = descriptor("probe");
  static std::atomic<int> ended;
  ended = 0;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(is(molt_thread_start(
                       module, "worker",
                       [](void*) {
                         while (!molt_thread_should_stop()) molt_thread_sleep(60'000);
                         ++ended;
                       },
                       nullptr, MOLT_THREAD_STOPPABLE, nullptr),
                   0));
  }
  EXPECT_EQ(molt_module_refcount(module), 3);
  board().exit = [](molt_module*) { EXPECT_EQ(ended, 3) << "exit() while threads run"; };
  EXPECT_TRUE(is(unload("probe"), 0));
  EXPECT_EQ(ended, 3);
}

TEST_F(Threads, StoppableThatDoesNotStop) {
  molt_module* module = descriptor("probe");
  Held run;
  ASSERT_TRUE(is(molt_thread_start(
                     module, "stubborn", [](void* raw) { static_cast<Held*>(raw)->gate.wait(); },
                     &run, MOLT_THREAD_STOPPABLE, nullptr),
                 0));
  EXPECT_TRUE(is(unload("probe", 0, 30), -ETIMEDOUT, {"stubborn"}));
  EXPECT_EQ(molt_module_get_state(module), MOLT_MODULE_STATE_LIVE);
  EXPECT_EQ(on_probe(1), 101);
  run.gate.open();
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Threads, StopOne) {
  static std::atomic<bool> asked;
  asked = false;
  molt_thread* thread = nullptr;
  ASSERT_TRUE(is(molt_thread_start(
                     descriptor("probe"), "one",
                     [](void*) { asked = molt_thread_sleep(60'000) && molt_thread_should_stop(); },
                     nullptr, 0, &thread),
                 0));
  molt_thread_stop(thread);
  EXPECT_TRUE(asked);
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Threads, NoneForAModuleThatGoes) {
  board().exit = [](molt_module* self) {
    EXPECT_TRUE(is(molt_thread_start(
                       self, "late", [](void*) {}, nullptr, 0, nullptr),
                   -EBUSY, {"probe"}));
  };
  EXPECT_TRUE(is(unload("probe"), 0));
  EXPECT_EQ(board().exits, 1);
}

TEST_F(Threads, OutsideOfAModulesThread) {
  EXPECT_FALSE(molt_thread_should_stop());
  EXPECT_FALSE(molt_thread_sleep(1));
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Threads, FromInit) {
  ASSERT_TRUE(is(unload("probe"), 0));
  static std::atomic<bool> ran;
  ran = false;
  board().init = [](molt_module* self) {
    return molt_thread_start(
        self, "early",
        [](void*) {
          ran = true;
          while (!molt_thread_sleep(60'000)) {
          }
        },
        nullptr, MOLT_THREAD_STOPPABLE, nullptr);
  };
  ASSERT_TRUE(is(load("probe"), 0));
  EXPECT_TRUE(eventually([] { return ran.load(); }));
  EXPECT_TRUE(is(unload("probe"), 0));
  // The same, and init fails afterwards: its thread must be gone before the memory is.
  Traces before = Traces::now();
  board().init = [](molt_module* self) {
    EXPECT_EQ(molt_thread_start(
                  self, "early",
                  [](void*) {
                    while (!molt_thread_sleep(60'000)) {
                    }
                  },
                  nullptr, MOLT_THREAD_STOPPABLE, nullptr),
              0);
    return -EIO;
  };
  EXPECT_TRUE(is(load("probe"), -EIO));
  expect_gone("probe", before);
}

// ---- Notifiers.

struct Listener {
  molt_notifier notifier = {};
  const char* name;
  std::vector<std::string>* heard;
  int answer = 0;

  Listener(const char* n, int priority, std::vector<std::string>* h) : name(n), heard(h) {
    notifier.notify = [](molt_notifier* self, molt_module_state event, molt_module* module) {
      auto* listener = static_cast<Listener*>(self->context);
      const char* names[] = {"LIVE", "COMING", "GOING", "UNFORMED"};
      listener->heard->push_back(std::string(listener->name) + " " + module->name + " " +
                                 names[event]);
      // A roll-back's GOING finds the module COMING still.
      EXPECT_TRUE(molt_module_get_state(module) == event || event == MOLT_MODULE_STATE_GOING);
      return event == MOLT_MODULE_STATE_COMING ? listener->answer : -EIO;
    };
    notifier.priority = priority;
    notifier.context = this;
    EXPECT_EQ(molt_notifier_register(&notifier), 0);
  }
  ~Listener() { EXPECT_EQ(molt_notifier_unregister(&notifier), 0); }
};

class Notifiers : public ModuleTest {
 protected:
  std::vector<std::string> heard_;
};
using Lines = std::vector<std::string>;

TEST_F(Notifiers, HighPriorityFirstThenInOrder) {
  Listener low("low", -5, &heard_), a("a", 0, &heard_), high("high", 9, &heard_),
      b("b", 0, &heard_);
  ASSERT_TRUE(is(load("probe"), 0));
  EXPECT_EQ(heard_,
            (Lines{"high probe COMING", "a probe COMING", "b probe COMING", "low probe COMING",
                   "high probe LIVE", "a probe LIVE", "b probe LIVE", "low probe LIVE"}));
  heard_.clear();
  ASSERT_TRUE(is(unload("probe"), 0));
  EXPECT_EQ(heard_,
            (Lines{"high probe GOING", "a probe GOING", "b probe GOING", "low probe GOING"}));
}

TEST_F(Notifiers, VetoTellsThoseBefore) {
  Traces before = Traces::now();
  Listener first("first", 3, &heard_), second("second", 2, &heard_), vetoer("vetoer", 1, &heard_),
      after("after", 0, &heard_);
  vetoer.answer = -EACCES;
  EXPECT_TRUE(is(load("probe"), -EACCES, {"probe"}));
  EXPECT_EQ(heard_, (Lines{"first probe COMING", "second probe COMING", "vetoer probe COMING",
                           "first probe GOING", "second probe GOING"}));
  EXPECT_EQ(board().inits, 0);
  EXPECT_EQ(board().exits, 0);
  expect_gone("probe", before);
  vetoer.answer = 1;  // no veto: not a negative errno
  EXPECT_TRUE(is(load("probe"), 0));
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Notifiers, RegisteredTwice) {
  Listener listener("one", 0, &heard_);
  EXPECT_TRUE(is(molt_notifier_register(&listener.notifier), -EEXIST));
  molt_notifier other = {};
  EXPECT_TRUE(is(molt_notifier_register(&other), -EINVAL)) << "without a function";
  other.notify = listener.notifier.notify;
  EXPECT_TRUE(is(molt_notifier_unregister(&other), -ENOENT));
}

TEST_F(Notifiers, OfAModuleVanishWithIt) {
  static molt_notifier notifier;
  static std::atomic<int> heard;
  heard = 0;
  board().init = [](molt_module* self) {
    if (self->name != std::string("probe")) return 0;
    notifier = {};
    notifier.notify = [](molt_notifier*, molt_module_state, molt_module*) {
      ++heard;
      return 0;
    };
    notifier.owner = self;
    return molt_notifier_register(&notifier);
  };
  ASSERT_TRUE(is(load("probe"), 0));
  EXPECT_EQ(heard, 1) << "its own LIVE";
  ASSERT_TRUE(is(load("bare"), 0));
  EXPECT_EQ(heard, 3);
  ASSERT_TRUE(is(unload("probe"), 0));
  int after = heard;
  ASSERT_TRUE(is(unload("bare"), 0));
  EXPECT_EQ(heard, after);
}

// Unregistering waits for the notifier that runs, but not for itself.
TEST_F(Notifiers, UnregisterWhileItRuns) {
  struct Slow {
    molt_notifier notifier = {};
    Gate gate;
    std::atomic<bool> inside{false};
  } slow;
  slow.notifier.context = &slow;
  slow.notifier.notify = [](molt_notifier* self, molt_module_state, molt_module*) {
    auto* context = static_cast<Slow*>(self->context);
    context->inside = true;
    context->gate.wait();
    context->inside = false;
    return 0;
  };
  ASSERT_EQ(molt_notifier_register(&slow.notifier), 0);
  Sleeper loader([] { EXPECT_TRUE(is(load("bare"), 0)); });
  ASSERT_TRUE(eventually([&] { return slow.inside.load(); }));
  Sleeper remover([&] {
    EXPECT_EQ(molt_notifier_unregister(&slow.notifier), 0);
    EXPECT_FALSE(slow.inside);
  });
  remover.wait_until_asleep();
  EXPECT_FALSE(remover.done());
  slow.gate.open();
  remover.join();
  loader.join();
  EXPECT_TRUE(is(unload("bare"), 0));
}

TEST_F(Notifiers, UnregistersItself) {
  static molt_notifier notifier;
  static int heard;
  heard = 0;
  notifier = {};
  notifier.notify = [](molt_notifier* self, molt_module_state, molt_module*) {
    ++heard;
    return molt_notifier_unregister(self);
  };
  ASSERT_EQ(molt_notifier_register(&notifier), 0);
  ASSERT_TRUE(is(load("bare"), 0));
  EXPECT_TRUE(is(unload("bare"), 0));
  EXPECT_EQ(heard, 1);
}

// Loading from a notifier: no lock is held over module code, or over the host's.
TEST_F(Notifiers, LoadsAnother) {
  static molt_notifier notifier;
  notifier = {};
  notifier.notify = [](molt_notifier*, molt_module_state event, molt_module* module) {
    if (event == MOLT_MODULE_STATE_LIVE && module->name == std::string("probe")) {
      return molt_load(module_file("bare").c_str(), nullptr, 0, -1);
    }
    return 0;
  };
  ASSERT_EQ(molt_notifier_register(&notifier), 0);
  EXPECT_TRUE(is(load("probe"), 0));
  EXPECT_TRUE(is(unload("bare"), 0));
  EXPECT_TRUE(is(unload("probe"), 0));
  EXPECT_EQ(molt_notifier_unregister(&notifier), 0);
}

// Its code would be gone when the notifier returns into it.
TEST_F(Notifiers, ModuleCannotUnloadItselfFromItsOwn) {
  static molt_notifier notifier;
  static int asked;
  asked = 0;
  board().init = [](molt_module* self) {
    if (self->name != std::string("probe")) return 0;
    notifier = {};
    notifier.notify = [](molt_notifier*, molt_module_state, molt_module* module) {
      if (module->name == std::string("probe")) return 0;
      ++asked;
      EXPECT_TRUE(is(unload("probe"), -EDEADLK, {"probe"}));
      EXPECT_TRUE(is(molt_replace("probe", module_file("probe_2").c_str(), nullptr, 0, -1),
                     -EDEADLK, {"probe"}));
      return 0;
    };
    notifier.owner = self;
    return molt_notifier_register(&notifier);
  };
  ASSERT_TRUE(is(load("probe"), 0));
  ASSERT_TRUE(is(load("bare"), 0));
  EXPECT_EQ(asked, 2);
  EXPECT_TRUE(is(unload("probe"), 0));
  EXPECT_TRUE(is(unload("bare"), 0));
}

// From within a load that the notifier itself has made.
TEST_F(Notifiers, UnregisteredFarWithin) {
  static molt_notifier outer, inner;
  outer = inner = {};
  outer.notify = [](molt_notifier*, molt_module_state event, molt_module* module) {
    if (event == MOLT_MODULE_STATE_LIVE && module->name == std::string("probe")) {
      EXPECT_TRUE(is(load("bare"), 0));
    }
    return 0;
  };
  inner.priority = 1;
  inner.notify = [](molt_notifier*, molt_module_state, molt_module* module) {
    if (module->name == std::string("bare")) molt_notifier_unregister(&outer);
    return 0;
  };
  ASSERT_EQ(molt_notifier_register(&outer), 0);
  ASSERT_EQ(molt_notifier_register(&inner), 0);
  EXPECT_TRUE(is(load("probe"), 0));
  EXPECT_TRUE(is(molt_notifier_unregister(&outer), -ENOENT));
  EXPECT_EQ(molt_notifier_unregister(&inner), 0);
  EXPECT_TRUE(is(unload("bare"), 0));
  EXPECT_TRUE(is(unload("probe"), 0));
}

// ---- Nothing given.

TEST_F(ModuleTest, NothingGiven) {
  EXPECT_TRUE(is(molt_load(nullptr, nullptr, 0, -1), -EINVAL));
  EXPECT_TRUE(is(molt_replace(nullptr, nullptr, nullptr, 0, -1), -EINVAL));
  EXPECT_TRUE(is(molt_replace("bare", module_file("bare").c_str(), nullptr, 64, -1), -EINVAL));
  EXPECT_TRUE(is(molt_unload(nullptr, 0, -1), -ENOENT));
  EXPECT_TRUE(is(molt_disable(nullptr), -ENOENT));
  EXPECT_EQ(molt_module_find_get(nullptr), nullptr);
  molt_module* owner = nullptr;
  EXPECT_EQ(molt_acquire(nullptr, "x", &owner), nullptr);
  EXPECT_EQ(molt_acquire("x", nullptr, &owner), nullptr);
  EXPECT_TRUE(is(molt_withdraw(nullptr, nullptr, nullptr), -ENOENT));
  EXPECT_TRUE(is(molt_thread_start(nullptr, nullptr, nullptr, nullptr, 0, nullptr), -EINVAL));
  EXPECT_EQ(molt_hook_register(nullptr), -EINVAL);
  molt_hook_unregister(nullptr);
}

// ---- Offers.

class Offers : public ModuleTest {
 protected:
  void SetUp() override {
    board().init = [](molt_module* self) { return molt_offer(self, "codec", "gzip", "packs"); };
    ASSERT_TRUE(is(load("probe"), 0));
  }
};

TEST_F(Offers, UsersHoldTheOwner) {
  molt_module* owner = nullptr;
  EXPECT_STREQ(static_cast<const char*>(molt_acquire("codec", "gzip", &owner)), "packs");
  ASSERT_NE(owner, nullptr);
  EXPECT_EQ(molt_module_refcount(owner), 1);
  EXPECT_TRUE(is(unload("probe"), -EAGAIN, {"probe"}));
  molt_release(owner);
  EXPECT_TRUE(is(unload("probe"), 0));
  EXPECT_EQ(molt_acquire("codec", "gzip", &owner), nullptr) << "it did not vanish with its module";
}

TEST_F(Offers, KindAndNameBothCount) {
  molt_module* owner = nullptr;
  EXPECT_EQ(molt_acquire("codec", "zstd", &owner), nullptr);
  EXPECT_EQ(molt_acquire("cipher", "gzip", &owner), nullptr);
  EXPECT_EQ(owner, nullptr) << "outputs are untouched on failure";
  molt_module* module = descriptor("probe");
  EXPECT_TRUE(is(molt_offer(module, "codec", "gzip", "again"), -EEXIST, {"codec", "gzip"}));
  EXPECT_EQ(molt_offer(module, "cipher", "gzip", "hides"), 0);
  EXPECT_STREQ(static_cast<const char*>(molt_acquire("cipher", "gzip", &owner)), "hides");
  molt_release(owner);
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Offers, Withdrawn) {
  molt_module* module = descriptor("probe");
  molt_module* owner = nullptr;
  ASSERT_NE(molt_acquire("codec", "gzip", &owner), nullptr);
  EXPECT_EQ(molt_withdraw(module, "codec", "gzip"), 0);
  molt_module* second = nullptr;
  EXPECT_EQ(molt_acquire("codec", "gzip", &second), nullptr);
  EXPECT_TRUE(is(molt_withdraw(module, "codec", "gzip"), -ENOENT, {"codec", "gzip"}));
  EXPECT_TRUE(is(unload("probe"), -EAGAIN)) << "its user is still there";
  molt_release(owner);
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Offers, NotWhileGoing) {
  board().exit = [](molt_module* self) {
    molt_module* owner = nullptr;
    EXPECT_EQ(molt_acquire("codec", "gzip", &owner), nullptr);
    molt_offer(self, "codec", "late", "late");  // accepted or not, nobody gets it
    EXPECT_EQ(molt_acquire("codec", "late", &owner), nullptr);
  };
  EXPECT_TRUE(is(unload("probe"), 0));
  EXPECT_EQ(board().exits, 1);
  molt_module* owner = nullptr;
  EXPECT_EQ(molt_acquire("codec", "late", &owner), nullptr);
}

}  // namespace
