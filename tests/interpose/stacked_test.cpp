// Functions that are both hooked and livepatched: whoever comes second, whoever goes first, and with
// threads that call all the time.

#include <gtest/gtest.h>
#include <linux/futex.h>
#include <molt/livepatch.h>
#include <molt/molt.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "board.hpp"
#include "victim.hpp"

// Hooked and patched as well; not exported by a library, so its hook keeps every register.
extern "C" [[gnu::noipa]] long functions_test_local(long a) { return 2 * a + 1; }

namespace {

int load(const std::string& module, const char* args = nullptr) {
  return molt_load((std::string(MODULES) + "/" + module + ".so").c_str(), args, 0, -1);
}
void hook(const std::string& module) { ASSERT_EQ(load(module), 0) << molt_last_error(); }
void unhook(const std::string& module) {
  ASSERT_EQ(molt_unload(module.c_str(), 0, -1), 0) << molt_last_error();
  EXPECT_STREQ(molt_last_error(), "") << module;  // unmapped
}
void patch(const char* args = nullptr) {
  ASSERT_EQ(load("stacked_patch", args), 0) << molt_last_error();
  ASSERT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
}
void revert() {
  ASSERT_EQ(molt_patch_set_enabled("stacked_patch", 0), 0) << molt_last_error();
  ASSERT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  ASSERT_EQ(molt_unload("stacked_patch", 0, -1), 0) << molt_last_error();
  EXPECT_STREQ(molt_last_error(), "");
}

template <class F>
std::string code_of(F* function) {
  return {reinterpret_cast<const char*>(function), 16};
}

class Stacked : public testing::Test {
 protected:
  void SetUp() override {
    for (auto* n :
         {&interpose_board.entries, &interpose_board.returns, &interpose_board.inside,
          &interpose_board.last_a, &interpose_board.last_b, &interpose_board.last_result}) {
      n->store(0);
    }
  }
  void TearDown() override {
    EXPECT_EQ(code_of(victim_add), add_);
    EXPECT_EQ(code_of(functions_test_local), local_);
  }
  // What a call answers, and how often and with what result it was seen since the last time.
  void expect(bool hooked, bool patched) {
    const long entries = interpose_board.entries, returns = interpose_board.returns;
    const long result = patched ? 1005 : 5;
    EXPECT_EQ(victim_add(1, 2), result);
    EXPECT_EQ(interpose_board.entries - entries, hooked ? 1 : 0);
    EXPECT_EQ(interpose_board.returns - returns, hooked ? 1 : 0);
    if (hooked) {
      EXPECT_EQ(interpose_board.last_result, result);
    }
  }
  const std::string add_ = code_of(victim_add);
  const std::string local_ = code_of(functions_test_local);
};

TEST_F(Stacked, InEveryOrder) {
  for (const bool hook_first : {true, false}) {
    for (const bool hook_goes_first : {true, false}) {
      SCOPED_TRACE(testing::Message() << hook_first << hook_goes_first);
      expect(false, false);
      hook_first ? hook("counts") : patch();
      expect(hook_first, !hook_first);
      hook_first ? patch() : hook("counts");
      expect(true, true);
      hook_goes_first ? unhook("counts") : revert();
      expect(!hook_goes_first, hook_goes_first);
      hook_goes_first ? revert() : unhook("counts");
      expect(false, false);
    }
  }
}

TEST_F(Stacked, WhereEveryRegisterIsKept) {
  hook("own_function");
  EXPECT_EQ(functions_test_local(4), 9);
  patch("local=1");
  EXPECT_EQ(functions_test_local(4), 104);
  EXPECT_EQ(functions_test_local(13), -13);  // answered by the hook, whatever is in force
  revert();
  EXPECT_EQ(functions_test_local(4), 9);
  unhook("own_function");
  EXPECT_EQ(functions_test_local(13), 27);
}

// Below the wrapper's frame it is in the old version, as without.
TEST_F(Stacked, WaitsForASleeper) {
  hook("counts");
  std::atomic<unsigned> word{0};
  int result = 0;
  std::thread sleeper([&] { result = victim_sleeps(&word); });
  while (interpose_board.inside != 1) std::this_thread::yield();
  ASSERT_EQ(load("stacked_patch", "sleeps=1"), 0) << molt_last_error();
  EXPECT_EQ(molt_patch_wait(20), -ETIMEDOUT);
  EXPECT_NE(std::string(molt_last_error()).find("in victim_sleeps"), std::string::npos)
      << molt_last_error();
  word = 4;
  syscall(SYS_futex, &word, FUTEX_WAKE, 1, nullptr, nullptr, 0);
  sleeper.join();
  EXPECT_EQ(result, 4);
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(victim_sleeps(&word), 1004);
  revert();
  EXPECT_EQ(victim_sleeps(&word), 4);
  unhook("counts");
}

// No call mixes versions, and a hook that stays sees each call once, whatever comes and goes.
TEST_F(Stacked, UnderLoad) {
  hook("nested");
  std::atomic<bool> stop{false};
  std::atomic<long> calls{0}, mixed{0}, seen[3] = {};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      while (!stop) {
        const long version = victim_outer();
        ++(version == 1 || version == 2 ? seen[version] : mixed);
        victim_add(1, 2);
        ++calls;
      }
    });
  }
  for (int i = 0; i < 6; ++i) {
    patch("nested=1");
    hook("counts");
    if (i % 2 == 0) {
      unhook("counts");
      revert();
    } else {
      revert();
      unhook("counts");
    }
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(mixed, 0);
  EXPECT_GT(seen[1], 0);
  EXPECT_GT(seen[2], 0);
  EXPECT_EQ(interpose_board.inside, 2 * calls);  // both sides of victim_outer
  unhook("nested");
}

}  // namespace
