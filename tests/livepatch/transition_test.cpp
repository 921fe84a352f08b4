// Patches applied, stacked, reversed, replaced and forced, with threads asleep and busy.

#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "patching.hpp"
#include "targets.hpp"

namespace {

// A thread asleep in lp_sleeper until let go; `result` is what that call answered.
class Sleeper {
 public:
  Sleeper() {
    lp_shared.hold = 1;
    thread_ = std::thread([this] {
      tid_ = gettid();
      result = lp_sleeper();
      second = lp_sleeper();
    });
    EXPECT_TRUE(eventually([] { return lp_shared.inside == 1; }));
  }
  ~Sleeper() { let_go(); }
  Sleeper(const Sleeper&) = delete;
  Sleeper& operator=(const Sleeper&) = delete;
  void let_go() {
    if (!thread_.joinable()) return;
    lp_shared.hold = 0;
    syscall(SYS_futex, &lp_shared.hold, FUTEX_WAKE_PRIVATE, 100, nullptr, nullptr, 0);
    thread_.join();
  }
  int tid() const { return tid_; }
  int result = 0, second = 0;

 private:
  std::atomic<int> tid_{0};
  std::thread thread_;
};

// perf reads this file; tests/arch/gdb_names.cpp asks gdb. The first test: the variable is read once.
TEST(Transition, NamesItsCode) {
  setenv("MOLT_PERF_MAP", "1", 1);
  EXPECT_EQ(apply("lp_two"), "");
  EXPECT_EQ(revert("lp_two"), "");
  const std::string path = "/tmp/perf-" + std::to_string(getpid()) + ".map";
  std::ifstream map(path);
  std::string text(std::istreambuf_iterator<char>(map), {});
  EXPECT_NE(text.find(" lp_answer@gate\n"), std::string::npos) << text;
  EXPECT_NE(text.find(" lp_answer@original\n"), std::string::npos) << text;
  unlink(path.c_str());
  unsetenv("MOLT_PERF_MAP");
}

TEST(Transition, PatchesAndUnpatches) {
  EXPECT_EQ(lp_answer(10), 11);
  EXPECT_EQ(apply("lp_two"), "");
  EXPECT_EQ(lp_answer(10), 12);
  EXPECT_EQ(molt_unload("lp_two", 0, -1), -EAGAIN);
  EXPECT_EQ(revert("lp_two"), "");
  EXPECT_EQ(lp_answer(10), 11);
}

TEST(Transition, RefusesWhatTheRuntimeCallsItself) {
  EXPECT_EQ(load_patch("lp_two", "libc=1"), -EINVAL);
  EXPECT_NE(std::string(molt_last_error()).find("the runtime itself calls"), std::string::npos)
      << molt_last_error();
  EXPECT_EQ(lp_answer(0), 1);
}

TEST(Transition, RefusesFlagsItDoesNotKnow) {
  EXPECT_EQ(load_patch("lp_two", "flags=8"), -EINVAL);
  EXPECT_NE(std::strstr(molt_last_error(), "'lp_answer' has unknown flags, 0x8"), nullptr)
      << molt_last_error();
}

TEST(Transition, NamesTheFunctionWhoseEntrySomebodyElseHasWrittenTo) {
  EXPECT_EQ(apply("lp_two"), "");
  const int mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
  const auto entry = reinterpret_cast<off_t>(&lp_answer);
  unsigned char ours = 0, breakpoint = 0xcc;
  ASSERT_EQ(pread(mem, &ours, 1, entry), 1);
  ASSERT_EQ(pwrite(mem, &breakpoint, 1, entry), 1);
  const std::string refused = apply("lp_three");
  const std::string not_reverted = revert("lp_two", 0);
  ASSERT_EQ(pwrite(mem, &ours, 1, entry), 1);
  close(mem);
  const std::string text =
      "function 'lp_answer' cannot be redirected: somebody else has written to its entry, at 0x";
  EXPECT_NE(refused.find(text), std::string::npos) << refused;
  EXPECT_NE(not_reverted.find("lp_two"), std::string::npos) << not_reverted;
  // It was on its way meanwhile, and goes on as soon as it can.
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(molt_unload("lp_two", 0, -1), 0) << molt_last_error();
  EXPECT_EQ(lp_answer(1), 2);
}

TEST(Transition, StacksInAnyOrder) {
  EXPECT_EQ(apply("lp_two"), "");
  EXPECT_EQ(apply("lp_three"), "");
  EXPECT_EQ(apply("lp_four"), "");
  EXPECT_EQ(lp_answer(0), 4);
  EXPECT_EQ(revert("lp_three"), "");
  EXPECT_EQ(lp_answer(0), 4);
  EXPECT_EQ(revert("lp_four"), "");
  EXPECT_EQ(lp_answer(0), 2);
  EXPECT_EQ(revert("lp_two"), "");
  EXPECT_EQ(lp_answer(0), 1);
}

TEST(Transition, WaitsForWhoSleepsInTheOldVersion) {
  Sleeper sleeper;
  ASSERT_EQ(load_patch("lp_two", "sleeper=1"), 0) << molt_last_error();
  EXPECT_EQ(molt_patch_wait(20), -ETIMEDOUT);
  EXPECT_NE(std::string(molt_last_error()).find("in lp_sleeper"), std::string::npos)
      << molt_last_error();
  EXPECT_EQ(molt_patch_thread_state(sleeper.tid()), 0);
  EXPECT_EQ(molt_patch_thread_state(gettid()), 1);
  EXPECT_EQ(lp_answer(0), 2);  // this thread has changed over
  EXPECT_EQ(load_patch("lp_three"), -EBUSY);
  EXPECT_NE(std::string(molt_last_error()).find("lp_two is in transition"), std::string::npos)
      << molt_last_error();
  sleeper.let_go();
  EXPECT_EQ(sleeper.result, 1);
  EXPECT_EQ(sleeper.second, 2);
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(molt_patch_thread_state(gettid()), -1);
  EXPECT_EQ(revert("lp_two"), "");
}

TEST(Transition, IsReversedHalfWay) {
  Sleeper sleeper;
  ASSERT_EQ(load_patch("lp_two", "sleeper=1"), 0) << molt_last_error();
  EXPECT_EQ(lp_answer(0), 2);
  EXPECT_EQ(molt_patch_set_enabled("lp_two", 0), 0) << molt_last_error();
  // Nobody is in a new version: it is over as soon as nobody runs (D6).
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(lp_answer(0), 1);
  EXPECT_EQ(molt_unload("lp_two", 0, -1), 0) << molt_last_error();
  sleeper.let_go();
  EXPECT_EQ(sleeper.result, 1);
  EXPECT_EQ(sleeper.second, 1);
}

// Who waits for the end of what another thread turns back finds the module free.
TEST(Transition, IsFreeForWhoHasWaited) {
  for (int round = 0; round < 40; ++round) {
    Sleeper sleeper;
    ASSERT_EQ(load_patch("lp_two", "sleeper=1"), 0) << molt_last_error();
    std::atomic<bool> waits{false};
    int waited = -1, unloaded = -1;
    std::thread waiter([&] {
      waits = true;
      waited = molt_patch_wait(5000);
      unloaded = molt_unload("lp_two", 0, -1);
    });
    EXPECT_TRUE(eventually([&] { return waits.load(); }));
    EXPECT_EQ(molt_patch_set_enabled("lp_two", 0), 0) << molt_last_error();
    waiter.join();
    EXPECT_EQ(waited, 0);
    ASSERT_EQ(unloaded, 0) << round;
  }
}

TEST(Transition, IsReversedTwice) {
  Sleeper sleeper;
  ASSERT_EQ(apply("lp_two", "sleeper=0"), "");
  ASSERT_EQ(load_patch("lp_three", "sleeper=1"), 0) << molt_last_error();
  EXPECT_EQ(lp_answer(0), 3);
  sleeper.let_go();
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  Sleeper in_new;
  EXPECT_EQ(molt_patch_set_enabled("lp_three", 0), 0) << molt_last_error();
  EXPECT_EQ(molt_patch_wait(20), -ETIMEDOUT);
  EXPECT_EQ(lp_answer(0), 2);
  EXPECT_EQ(molt_patch_set_enabled("lp_three", 1), 0) << molt_last_error();
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(lp_answer(0), 3);
  in_new.let_go();
  EXPECT_EQ(in_new.result, 3);
  EXPECT_EQ(revert("lp_three"), "");
  EXPECT_EQ(revert("lp_two"), "");
}

// G7: who was out of the old code when the census was taken has no mark. A reversal makes other code the
// old one, and then must not take it for a thread that was born since.
TEST(Transition, AReversalHoldsWhoIsInTheOtherVersion) {
  Sleeper in_original;
  ASSERT_EQ(load_patch("lp_two", "sleeper=1"), 0) << molt_last_error();
  ASSERT_EQ(molt_patch_force("lp_two"), 0) << molt_last_error();
  ASSERT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  lp_shared.inside = 0;
  Sleeper in_new;
  // Out of the version that is left now; the other one holds it up.
  ASSERT_EQ(molt_patch_set_enabled("lp_two", 0), 0) << molt_last_error();
  EXPECT_EQ(molt_patch_wait(20), -ETIMEDOUT);
  EXPECT_EQ(molt_patch_thread_state(in_new.tid()), 1);
  EXPECT_EQ(molt_patch_thread_state(in_original.tid()), 0);
  ASSERT_EQ(molt_patch_set_enabled("lp_two", 1), 0) << molt_last_error();
  EXPECT_EQ(molt_patch_wait(50), -ETIMEDOUT);
  EXPECT_EQ(molt_patch_thread_state(in_original.tid()), 0);
  in_original.let_go();
  in_new.let_go();
  EXPECT_EQ(in_original.result, 1);
  EXPECT_EQ(in_original.second, 2);
  EXPECT_EQ(in_new.result, 2);
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(revert("lp_two"), "");
  lp_shared.inside = 0;
}

TEST(Transition, ReplacesAtomically) {
  EXPECT_EQ(apply("lp_two", "nested=1"), "");
  EXPECT_EQ(apply("lp_three"), "");
  EXPECT_EQ(lp_outer(2), 2);
  EXPECT_EQ(apply("lp_four", "replace=1"), "");
  EXPECT_EQ(lp_answer(0), 4);
  EXPECT_EQ(lp_outer(2), 1);  // a nop: the original again
  EXPECT_EQ(molt_unload("lp_two", 0, -1), 0) << molt_last_error();
  EXPECT_EQ(molt_unload("lp_three", 0, -1), 0) << molt_last_error();
  EXPECT_EQ(revert("lp_four"), "");
  EXPECT_EQ(lp_answer(0), 1);
}

TEST(Transition, AReversedReplacementRestoresAll) {
  EXPECT_EQ(apply("lp_two", "nested=1"), "");
  Sleeper sleeper;
  ASSERT_EQ(load_patch("lp_three", "replace=1 sleeper=1"), 0) << molt_last_error();
  EXPECT_EQ(lp_outer(1), 1);
  EXPECT_EQ(lp_answer(0), 3);
  EXPECT_EQ(molt_unload("lp_two", 0, -1), -EAGAIN);
  EXPECT_EQ(molt_patch_set_enabled("lp_three", 0), 0) << molt_last_error();
  EXPECT_EQ(molt_patch_wait(1000), 0) << molt_last_error();
  EXPECT_EQ(lp_outer(1), 2);
  EXPECT_EQ(lp_answer(0), 2);
  EXPECT_EQ(molt_unload("lp_three", 0, -1), 0) << molt_last_error();
  EXPECT_EQ(revert("lp_two"), "");
}

// As the two names of a constructor are: what replaces has no nop for the one, and a version for the other.
TEST(Transition, AFunctionWithTwoNamesIsOne) {
  EXPECT_EQ(apply("lp_two"), "");
  Sleeper sleeper;
  ASSERT_EQ(load_patch("lp_three", "replace=1 answer=0 answer_too=1 sleeper=1"), 0)
      << molt_last_error();
  EXPECT_EQ(lp_answer(0), 3);
  sleeper.let_go();
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(lp_answer(0), 3);
  EXPECT_EQ(molt_unload("lp_two", 0, -1), 0) << molt_last_error();
  EXPECT_EQ(apply("lp_two", "answer_too=1"), "");
  EXPECT_EQ(lp_answer(0), 2);
  EXPECT_EQ(revert("lp_two"), "");
  EXPECT_EQ(lp_answer(0), 3);
  EXPECT_EQ(load_patch("lp_four", "answer_too=1 differs=1"), -EEXIST);
  EXPECT_NE(std::strstr(molt_last_error(), "'lp_answer_too' by another name"), nullptr)
      << molt_last_error();
  EXPECT_EQ(revert("lp_three"), "");
  EXPECT_EQ(lp_answer(0), 1);
}

TEST(Transition, ForcedPatchingCanBeUndoneCleanly) {
  Sleeper sleeper;
  ASSERT_EQ(load_patch("lp_two", "sleeper=1"), 0) << molt_last_error();
  EXPECT_EQ(molt_patch_force("lp_two"), 0) << molt_last_error();
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(molt_patch_force("lp_two"), -EINVAL);
  // The one who sleeps in the original holds up the way back no more than it did the way there.
  ASSERT_EQ(molt_patch_set_enabled("lp_two", 0), 0) << molt_last_error();
  sleeper.let_go();
  EXPECT_EQ(sleeper.result, 1);
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(molt_unload("lp_two", 0, -1), 0) << molt_last_error();
}

TEST(Transition, ForcedUnpatchingPinsUntilProven) {
  ASSERT_EQ(apply("lp_two", "sleeper=1"), "");
  Sleeper sleeper;
  ASSERT_EQ(molt_patch_set_enabled("lp_two", 0), 0) << molt_last_error();
  EXPECT_EQ(molt_patch_force("lp_two"), 0) << molt_last_error();
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(lp_answer(0), 1);
  EXPECT_EQ(molt_unload("lp_two", 0, -1), -EAGAIN);
  sleeper.let_go();
  EXPECT_EQ(sleeper.result, 2);
  // The kernel never can; here a proof frees it.
  EXPECT_TRUE(eventually([] { return molt_unload("lp_two", 0, -1) == 0; })) << molt_last_error();
}

// Of a thread asleep in lp_two's version.
void expect_to_hold_up_the_next(Sleeper& sleeper) {
  ASSERT_EQ(load_patch("lp_four", "sleeper=1"), 0) << molt_last_error();
  EXPECT_EQ(molt_patch_wait(50), -ETIMEDOUT);
  EXPECT_EQ(molt_patch_thread_state(sleeper.tid()), 0);
  sleeper.let_go();
  EXPECT_EQ(sleeper.result, 2);
  EXPECT_EQ(sleeper.second, 4);
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(revert("lp_four"), "");
}

// KERNEL.md P12: 1 and 2 are immediate, 3 is not, and a thread sleeps in 1.
TEST(Transition, TheHoleOfImmediatePatchesIsClosed) {
  ASSERT_EQ(apply("lp_two", "sleeper=1 immediate=1"), "");
  Sleeper sleeper;
  ASSERT_EQ(apply("lp_three", "sleeper=1 immediate=1"), "");
  EXPECT_EQ(lp_answer(0), 3);
  ASSERT_NO_FATAL_FAILURE(expect_to_hold_up_the_next(sleeper));
  EXPECT_EQ(molt_patch_set_enabled("lp_three", 0), 0);
  EXPECT_EQ(molt_patch_set_enabled("lp_two", 0), 0);
  EXPECT_TRUE(eventually([] { return molt_unload("lp_three", 0, -1) == 0; })) << molt_last_error();
  EXPECT_TRUE(eventually([] { return molt_unload("lp_two", 0, -1) == 0; })) << molt_last_error();
  EXPECT_EQ(lp_answer(0), 1);
}

// The same where 2 has replaced 1, and only its function is immediate.
TEST(Transition, TheHoleOfImmediateReplacementsIsClosed) {
  ASSERT_EQ(apply("lp_two", "sleeper=1"), "");
  Sleeper sleeper;
  ASSERT_EQ(apply("lp_three", "sleeper=1 replace=1 immediate_sleeper=1"), "");
  ASSERT_NO_FATAL_FAILURE(expect_to_hold_up_the_next(sleeper));
  EXPECT_EQ(molt_patch_set_enabled("lp_three", 0), 0);
  for (const char* name : {"lp_three", "lp_two"}) {
    EXPECT_TRUE(eventually([&] { return molt_unload(name, 0, -1) == 0; })) << molt_last_error();
  }
  EXPECT_EQ(lp_answer(0), 1);
}

// The same after the patch that it sleeps in was taken back: it is on no function's stack of versions any more.
TEST(Transition, WhoSleepsInAVersionThatIsOverHoldsUpTheNext) {
  for (const bool forced : {false, true}) {
    ASSERT_EQ(apply("lp_two", forced ? "sleeper=1" : "sleeper=1 immediate=1"), "");
    Sleeper sleeper;
    ASSERT_EQ(molt_patch_set_enabled("lp_two", 0), 0) << molt_last_error();
    if (forced) {
      EXPECT_EQ(molt_patch_force("lp_two"), 0) << molt_last_error();
    }
    EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
    ASSERT_EQ(load_patch("lp_three", "sleeper=1"), 0) << molt_last_error();
    EXPECT_EQ(molt_patch_wait(50), -ETIMEDOUT);
    EXPECT_NE(std::strstr(molt_last_error(), "in lp_sleeper, asleep"), nullptr)
        << molt_last_error();
    EXPECT_EQ(molt_patch_thread_state(sleeper.tid()), 0);
    sleeper.let_go();
    EXPECT_EQ(sleeper.result, 2);
    EXPECT_EQ(sleeper.second, 3);
    EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
    EXPECT_EQ(revert("lp_three"), "");
    EXPECT_TRUE(eventually([] { return molt_unload("lp_two", 0, -1) == 0; })) << molt_last_error();
  }
  EXPECT_EQ(lp_answer(0), 1);
}

TEST(Transition, AnImmediateFunctionHoldsNobodyUp) {
  Sleeper sleeper;
  EXPECT_EQ(apply("lp_two", "sleeper=1 immediate_sleeper=1"), "");
  EXPECT_EQ(lp_answer(0), 2);
  sleeper.let_go();
  EXPECT_EQ(sleeper.result, 1);
  EXPECT_EQ(sleeper.second, 2);
  EXPECT_EQ(molt_patch_set_enabled("lp_two", 0), 0);
  EXPECT_TRUE(eventually([] { return molt_unload("lp_two", 0, -1) == 0; })) << molt_last_error();
}

// No page is writable and executable at once, at any step.
TEST(Transition, KeepsWritableAndExecutableApart) {
  const auto both = [] {
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
      if (line.find(" rwx") != std::string::npos || line.find(" -wx") != std::string::npos) {
        return line;
      }
    }
    return std::string();
  };
  ASSERT_EQ(both(), "");
  std::atomic<bool> stop{false};
  std::atomic<long> looks{0};
  std::string seen;
  std::thread looker([&] {
    for (; !stop && seen.empty(); ++looks) seen = both();
  });
  for (int round = 0; round < 5; ++round) {
    Sleeper sleeper;
    ASSERT_EQ(load_patch("lp_two", "sleeper=1 prepared=1"), 0) << molt_last_error();
    EXPECT_EQ(both(), "");
    const long before = looks;
    EXPECT_TRUE(eventually([&] { return looks > before + 1; }));
    sleeper.let_go();
    EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
    EXPECT_EQ(both(), "");
    EXPECT_EQ(revert("lp_two"), "");
  }
  stop = true;
  looker.join();
  EXPECT_EQ(seen, "");
}

// Debugging: objects live on for a while after they have gone, and are freed then.
TEST(Transition, ADelayedReleaseComesLater) {
  const std::string folder = testing::TempDir() + "molt-" + std::to_string(getpid());
  const molt_options options = {sizeof options, "delayed", folder.c_str(), nullptr, 100};
  ASSERT_EQ(molt_start(&options), 0) << molt_last_error();
  ASSERT_EQ(apply("lp_two"), "");
  const auto began = std::chrono::steady_clock::now();
  ASSERT_EQ(molt_patch_set_enabled("lp_two", 0), 0) << molt_last_error();
  ASSERT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(lp_answer(0), 1);
  EXPECT_EQ(molt_unload("lp_two", 0, -1), -EAGAIN);         // its patch is there still
  EXPECT_EQ(molt_patch_set_enabled("lp_two", 1), -ENOENT);  // and cannot be found any more
  EXPECT_TRUE(eventually([] { return molt_unload("lp_two", 0, -1) == 0; })) << molt_last_error();
  EXPECT_GE(std::chrono::steady_clock::now() - began, std::chrono::milliseconds(100));
  EXPECT_EQ(apply("lp_two"), "");
  EXPECT_EQ(lp_answer(0), 2);
  molt_stop();
  std::filesystem::remove_all(folder);
}

// D4.
TEST(Transition, AFailingInitTakesItsPatchBack) {
  EXPECT_EQ(load_patch("lp_two", "init_ret=-71"), -EPROTO);
  EXPECT_EQ(lp_answer(0), 1);
  Sleeper sleeper;
  EXPECT_EQ(load_patch("lp_two", "init_ret=-71 sleeper=1"), -EPROTO);
  EXPECT_EQ(lp_answer(0), 1);
  sleeper.let_go();
  EXPECT_EQ(sleeper.second, 1);
}

TEST(Transition, APreparedEntryBecomesOneJump) {
  const auto entry = [] {
    return __atomic_load_n(reinterpret_cast<const std::uint16_t*>(&lp_prepared), __ATOMIC_RELAXED);
  };
  const std::uint16_t before = entry();
  for (int round = 0; round < 3; ++round) {
    ASSERT_EQ(apply("lp_two", "prepared=1"), "");
    EXPECT_EQ(lp_prepared(), 2);
    EXPECT_TRUE(eventually([&] { return (entry() & 0xff) == 0xe9; }));
    EXPECT_EQ(lp_prepared(), 2);
    ASSERT_EQ(apply("lp_three", "prepared=1"), "");  // from there to a gate and back
    EXPECT_EQ(lp_prepared(), 3);
    EXPECT_EQ(revert("lp_three"), "");
    EXPECT_EQ(lp_prepared(), 2);
    EXPECT_EQ(revert("lp_two"), "");
    EXPECT_EQ(lp_prepared(), 1);
    EXPECT_EQ(entry(), before);
  }
}

// Writes into the program's code, as another tool does.
void write_code(void* at, const void* bytes, std::size_t count) {
  const int mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
  ASSERT_EQ(pwrite(mem, bytes, count, reinterpret_cast<off_t>(at)), static_cast<ssize_t>(count));
  close(mem);
}

// Nothing about these bytes looks like another tool's, but that the file has others.
TEST(Entry, ThatIsNotAsInItsFileIsRefused) {
  auto* code = reinterpret_cast<unsigned char*>(&lp_untouched);
  unsigned char own[5], nops[5] = {0x90, 0x90, 0x90, 0x90, 0x90};
  std::memcpy(own, code, sizeof own);
  write_code(code, nops, sizeof nops);
  EXPECT_EQ(load_patch("lp_two", "untouched=1"), -EBUSY);
  EXPECT_NE(std::string(molt_last_error()).find("not what its file says"), std::string::npos)
      << molt_last_error();
  EXPECT_EQ(std::memcmp(code, nops, sizeof nops), 0);
  write_code(code, own, sizeof own);
  EXPECT_EQ(apply("lp_two", "untouched=1"), "");
  EXPECT_EQ(lp_untouched(1), 2);
  EXPECT_EQ(revert("lp_two"), "");
  EXPECT_EQ(std::memcmp(code, own, sizeof own), 0);
}

// One jump can be changed by an int3 only: a thread that blocks SIGTRAP is told, and nothing happens.
TEST(Entry, ThatIsOneJumpNeedsThreadsThatTakeTraps) {
  const auto entry = [] {
    return __atomic_load_n(reinterpret_cast<const unsigned char*>(&lp_prepared), __ATOMIC_RELAXED);
  };
  ASSERT_EQ(apply("lp_two", "prepared=1 answer=0"), "");
  ASSERT_TRUE(eventually([&] { return entry() == 0xe9; }));
  std::atomic<int> blocks{0};
  std::thread blocker([&] {
    sigset_t trap;
    sigemptyset(&trap);
    sigaddset(&trap, SIGTRAP);
    pthread_sigmask(SIG_BLOCK, &trap, nullptr);
    blocks = 1;
    while (blocks == 1) std::this_thread::yield();
  });
  while (blocks == 0) std::this_thread::yield();
  EXPECT_EQ(load_patch("lp_three", "prepared=1 answer=0"), -EBUSY);
  EXPECT_NE(std::string(molt_last_error()).find("blocks SIGTRAP"), std::string::npos)
      << molt_last_error();
  EXPECT_EQ(lp_prepared(), 2);
  blocks = 2;
  blocker.join();
  EXPECT_EQ(apply("lp_three", "prepared=1 answer=0"), "");
  EXPECT_EQ(lp_prepared(), 3);
  EXPECT_EQ(revert("lp_three"), "");
  EXPECT_EQ(revert("lp_two"), "");
}

// What is known of a sleeper's mask holds while it sleeps.
TEST(Entry, NeedsThreadsThatTakeTrapsStill) {
  std::atomic<std::uint32_t> step{0}, asleep{0};
  const auto sleep_at = [&](std::uint32_t at) {
    asleep = at;
    while (step == at - 1) {
      syscall(SYS_futex, &step, FUTEX_WAIT_PRIVATE, at - 1, nullptr, nullptr, 0);
    }
  };
  const auto go_on = [&] {
    ++step;
    syscall(SYS_futex, &step, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  };
  std::thread sleeper([&] {
    sigset_t trap;
    sigemptyset(&trap);
    sigaddset(&trap, SIGTRAP);
    for (std::uint32_t at = 1; at <= 3; ++at) {
      sleep_at(at);
      pthread_sigmask(at == 1 ? SIG_BLOCK : SIG_UNBLOCK, &trap, nullptr);
    }
  });
  EXPECT_TRUE(eventually([&] { return asleep == 1; }));
  // Twice: what is believed the second time is what the first one saw.
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(apply("lp_two"), "");
    EXPECT_EQ(revert("lp_two"), "");
  }
  go_on();
  EXPECT_TRUE(eventually([&] { return asleep == 2; }));
  EXPECT_EQ(load_patch("lp_two"), -EBUSY);
  EXPECT_NE(std::string(molt_last_error()).find("blocks SIGTRAP"), std::string::npos)
      << molt_last_error();
  EXPECT_EQ(lp_answer(0), 1);
  go_on();
  EXPECT_TRUE(eventually([&] { return asleep == 3; }));
  EXPECT_EQ(apply("lp_two"), "");
  EXPECT_EQ(lp_answer(0), 2);
  EXPECT_EQ(revert("lp_two"), "");
  go_on();
  sleeper.join();
}

// Neither that of an activation that holds a transition up, which turns and begins again meanwhile, nor that of
// a call through a gate.
TEST(Transition, NoReturnAddressIsReplaced) {
  lp_shared.hold = 1;
  std::atomic<int> result{0};
  std::thread old_one([&] { result = lp_keeps(); });
  ASSERT_TRUE(eventually([] { return lp_shared.inside == 1; }));
  for (int i = 0; i < 2; ++i) {
    ASSERT_EQ(load_patch("lp_two", "keeps=1"), 0) << molt_last_error();
    EXPECT_EQ(molt_patch_wait(20), -ETIMEDOUT);
    if (i == 0) {
      EXPECT_EQ(revert("lp_two"), "");
    }
  }
  std::atomic<int> result_of_new{0};
  std::thread new_one([&] { result_of_new = lp_keeps(); });
  EXPECT_TRUE(eventually([] { return lp_shared.inside == 2; }));
  Dl_info returns_to{}, test{};
  EXPECT_NE(dladdr(lp_shared.returns_to, &returns_to), 0);
  EXPECT_NE(dladdr(reinterpret_cast<void*>(&lp_keeps), &test), 0);
  EXPECT_EQ(returns_to.dli_fbase, test.dli_fbase);
  lp_shared.hold = 0;
  syscall(SYS_futex, &lp_shared.hold, FUTEX_WAKE_PRIVATE, 100, nullptr, nullptr, 0);
  old_one.join();
  new_one.join();
  EXPECT_EQ(result, 1);
  EXPECT_EQ(result_of_new, 2);
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(revert("lp_two"), "");
}

// Where the entry's jump leads to lies in the module itself.
TEST(Transition, AfterItCallsGoByADirectJump) {
  const auto leads_to = []() -> const unsigned char* {
    const auto* entry = reinterpret_cast<const unsigned char*>(&lp_answer);
    if (entry[0] == 0xf3) entry += 4;  // endbr64
    if (entry[0] != 0xe9) return nullptr;
    std::int32_t distance;
    std::memcpy(&distance, entry + 1, sizeof distance);
    return entry + 5 + distance;
  };
  const auto file_of = [](const unsigned char* code) -> std::string {
    Dl_info info{};
    return code != nullptr && dladdr(code, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname
                                                                                    : "";
  };
  EXPECT_EQ(leads_to(), nullptr);
  {
    Sleeper sleeper;
    ASSERT_EQ(load_patch("lp_two", "sleeper=1"), 0) << molt_last_error();
    EXPECT_NE(leads_to(), nullptr);
    EXPECT_EQ(file_of(leads_to()), "");  // a gate
  }
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  const unsigned char* direct = leads_to();
  ASSERT_NE(direct, nullptr);
  if (file_of(direct).empty()) {
    // The module lies beyond the reach of a jump: one more, to it.
    ASSERT_EQ(direct[0] == 0x3e ? direct[1] : direct[0], 0xff);
  }
  EXPECT_EQ(revert("lp_two"), "");
  EXPECT_EQ(leads_to(), nullptr);
}

TEST(Transition, BusyThreadsSeeOneVersionPerActivation) {
  std::atomic<bool> stop{false};
  std::atomic<long> mixed{0}, calls{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      while (!stop) {
        if (lp_outer(2) < 0) ++mixed;
        ++calls;
      }
    });
  }
  for (int round = 0; round < 10; ++round) {
    EXPECT_EQ(apply("lp_two", "nested=1"), "");
    EXPECT_EQ(lp_outer(1), 2);
    EXPECT_EQ(revert("lp_two"), "");
    EXPECT_EQ(lp_outer(1), 1);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(mixed, 0);
  EXPECT_GT(calls, 0);
}

}  // namespace
