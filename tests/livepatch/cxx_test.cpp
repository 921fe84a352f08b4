// Patched functions of C++, and the ways in which a thread leaves a function other than by returning.

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cxx_targets.hpp"
#include "patching.hpp"
#include "targets.hpp"

namespace {

// A thread asleep at the bottom of a recursion of the old version.
class Recursing {
 public:
  Recursing() {
    lp_shared.inside = 0;
    lp_shared.hold = 1;
    thread_ = std::thread([this] { result = cx_recurses(5); });
    EXPECT_TRUE(eventually([] { return lp_shared.inside == 1; }));
  }
  ~Recursing() { let_go(); }
  void let_go() {
    if (!thread_.joinable()) return;
    lp_shared.hold = 0;
    syscall(SYS_futex, &lp_shared.hold, FUTEX_WAKE_PRIVATE, 100, nullptr, nullptr, 0);
    thread_.join();
  }
  int result = 0;

 private:
  std::thread thread_;
};

class Cxx : public testing::Test {
 protected:
  void SetUp() override {
    lp_shared.hold = 0;
    lp_shared.inside = 0;
  }
};

TEST_F(Cxx, ThrowsAndCatchesAcrossVersions) {
  int destroyed = 0;
  EXPECT_EQ(cx_catches(&destroyed), 11);
  EXPECT_EQ(destroyed, 1);
  ASSERT_EQ(apply("lp_cxx"), "");
  EXPECT_EQ(cx_catches(&destroyed), 22);
  EXPECT_EQ(destroyed, 101);
  // Old code, not patched, catches what new code throws.
  try {
    cx_throws(&destroyed);
    FAIL();
  } catch (const CxError& error) {
    EXPECT_EQ(error.number, 2);
  }
  EXPECT_EQ(revert("lp_cxx"), "");
  EXPECT_EQ(cx_catches(&destroyed), 11);
}

TEST_F(Cxx, ThrowsInTheMiddleOfATransition) {
  Recursing holds_up;
  int destroyed = 0;
  ASSERT_EQ(load_patch("lp_cxx"), 0) << molt_last_error();
  EXPECT_EQ(cx_catches(&destroyed), 22);  // through gates
  std::thread([&] { EXPECT_EQ(cx_catches(&destroyed), 22); }).join();
  EXPECT_EQ(destroyed, 200);
  EXPECT_EQ(molt_patch_set_enabled("lp_cxx", 0), 0) << molt_last_error();
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(cx_catches(&destroyed), 11);
  EXPECT_EQ(molt_unload("lp_cxx", 0, -1), 0) << molt_last_error();
}

TEST_F(Cxx, VirtualFunctionsAndTemplates) {
  CxShape shape;
  CxShape* volatile pointer = &shape;
  int (*volatile twice)(int) = cx_twice<int>;
  ASSERT_EQ(apply("lp_cxx"), "");
  EXPECT_EQ(pointer->area(), 12);
  EXPECT_EQ(twice(3), 106);
  EXPECT_EQ(revert("lp_cxx"), "");
  EXPECT_EQ(pointer->area(), 1);
  EXPECT_EQ(twice(3), 6);
}

TEST_F(Cxx, StaticsAndThreadLocalsOfNewCode) {
  ASSERT_EQ(apply("lp_cxx"), "");
  EXPECT_EQ(cx_counts(), 41041);
  EXPECT_EQ(cx_counts(), 42042);
  std::thread([] { EXPECT_EQ(cx_counts(), 43041); }).join();
  // Its destructor is code of the patch: it ran before the thread was gone.
  EXPECT_EQ(lp_shared.inside, 1000u);
  EXPECT_EQ(molt_patch_set_enabled("lp_cxx", 0), 0);
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(cx_counts(), 1);
  // This thread has one of them still: the module stays for it, and the process is told so.
  EXPECT_EQ(molt_unload("lp_cxx", 0, -1), 0);
  EXPECT_NE(std::string(molt_last_error()).find("thread_local"), std::string::npos)
      << molt_last_error();
}

TEST_F(Cxx, ARecursionIsOfOneVersion) {
  Recursing old;
  ASSERT_EQ(load_patch("lp_cxx2"), 0) << molt_last_error();
  EXPECT_EQ(molt_patch_wait(20), -ETIMEDOUT);
  EXPECT_EQ(cx_version(), 2);
  old.let_go();
  EXPECT_EQ(old.result, 1);
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(cx_recurses(5), 2);
  EXPECT_EQ(revert("lp_cxx2"), "");
  EXPECT_EQ(cx_recurses(5), 1);
}

TEST_F(Cxx, LeavesByLongjmp) {
  std::jmp_buf back;
  volatile int round = 0;
  int landed = setjmp(back);
  if (landed == 0) cx_jumps(&back);
  EXPECT_EQ(landed, 1);
  ASSERT_EQ(apply("lp_cxx2"), "");
  landed = setjmp(back);
  if (landed == 0) cx_jumps(&back);
  EXPECT_EQ(landed, 2);
  // What was left by a jump holds nothing up.
  EXPECT_EQ(revert("lp_cxx2"), "");
  round = round + 1;
  EXPECT_EQ(round, 1);
}

TEST_F(Cxx, IsCancelledInAnOldFunction) {
  lp_shared.hold = 1;
  pthread_t thread;
  pthread_create(
      &thread, nullptr,
      [](void*) -> void* {
        pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, nullptr);
        cx_recurses(3);
        return nullptr;
      },
      nullptr);
  ASSERT_TRUE(eventually([] { return lp_shared.inside == 1; }));
  ASSERT_EQ(load_patch("lp_cxx2"), 0) << molt_last_error();
  EXPECT_EQ(molt_patch_wait(20), -ETIMEDOUT);
  pthread_cancel(thread);
  void* result = nullptr;
  pthread_join(thread, &result);
  EXPECT_EQ(result, PTHREAD_CANCELED);
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(revert("lp_cxx2"), "");
}

int g_at_exit = 0;
struct AtExit {
  ~AtExit() { g_at_exit = cx_version(); }
};

TEST_F(Cxx, CalledAtAThreadsEndAndFromHandlers) {
  static volatile sig_atomic_t seen = 0;
  struct sigaction action {};
  action.sa_handler = [](int) { seen = cx_version(); };
  sigaction(SIGUSR1, &action, nullptr);
  Recursing holds_up;
  ASSERT_EQ(load_patch("lp_cxx2"), 0) << molt_last_error();
  std::thread([] {
    static thread_local AtExit at_exit;
    asm volatile("" ::"r"(&at_exit));
  }).join();
  EXPECT_EQ(g_at_exit, 2);  // born since
  raise(SIGUSR1);
  EXPECT_EQ(seen, 2);
  holds_up.let_go();
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(revert("lp_cxx2"), "");
  raise(SIGUSR1);
  EXPECT_EQ(seen, 1);
}

// The exit code of a child that does this.
template <class Do>
int in_child(Do&& what) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    _exit(what());
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status;
}

TEST_F(Cxx, AChildOfATransitionFinishesOrTurnsIt) {
  Recursing holds_up;
  ASSERT_EQ(load_patch("lp_cxx2"), 0) << molt_last_error();
  EXPECT_EQ(molt_patch_wait(20), -ETIMEDOUT);
  // The thread that holds it up is not there.
  EXPECT_EQ(in_child([] {
              if (cx_version() != 2) return 1;
              if (molt_patch_wait(5000) != 0) return 2;
              if (cx_version() != 2) return 3;
              if (molt_patch_set_enabled("lp_cxx2", 0) != 0 || molt_patch_wait(5000) != 0) return 4;
              return cx_version() == 1 ? 0 : 5;
            }),
            0);
  EXPECT_EQ(in_child([] {
              if (molt_patch_set_enabled("lp_cxx2", 0) != 0) return 1;
              if (molt_patch_wait(5000) != 0) return 2;
              return cx_version() == 1 ? 0 : 3;
            }),
            0);
  EXPECT_EQ(molt_patch_thread_state(gettid()), 1);
  holds_up.let_go();
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(revert("lp_cxx2"), "");
}

TEST_F(Cxx, VforkUsesItsParentsWord) {
  Recursing holds_up;
  ASSERT_EQ(load_patch("lp_cxx2"), 0) << molt_last_error();
  static volatile int seen;
  seen = 0;
  const pid_t child = vfork();
  if (child == 0) {
    seen = cx_version();
    _exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(seen, 2);
  EXPECT_EQ(cx_version(), 2);
  holds_up.let_go();
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(revert("lp_cxx2"), "");
}

}  // namespace
