// Modules that hook functions of a library that knows nothing of it: what callbacks see, what callers
// get, and that nothing is left.

#include <dlfcn.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/futex.h>
#include <molt/molt.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "board.hpp"
#include "victim.hpp"

extern "C" [[gnu::noipa]] long functions_test_local(long a) { return 2 * a + 1; }

namespace {

std::string path_of(const std::string& module) {
  return std::string(MODULES) + "/" + module + ".so";
}

void load(const std::string& module) {
  ASSERT_EQ(molt_load(path_of(module).c_str(), nullptr, 0, -1), 0)
      << module << ": " << molt_last_error();
}
void unload(const std::string& module) {
  ASSERT_EQ(molt_unload(module.c_str(), 0, -1), 0) << molt_last_error();
  EXPECT_STREQ(molt_last_error(), "") << module;  // unmapped
}

template <class F>
std::string code_of(F* function) {
  return {reinterpret_cast<const char*>(function), 16};
}

class Functions : public testing::Test {
 protected:
  void SetUp() override {
    for (auto* n :
         {&interpose_board.entries, &interpose_board.returns, &interpose_board.inside,
          &interpose_board.last_a, &interpose_board.last_b, &interpose_board.last_result}) {
      n->store(0);
    }
  }
  const std::string add_ = code_of(victim_add);
  const std::string open_ = code_of(victim_open);
  void TearDown() override {
    EXPECT_EQ(code_of(victim_add), add_);
    EXPECT_EQ(code_of(victim_open), open_);
  }
};

TEST_F(Functions, CallsAreSeenFromBothSides) {
  EXPECT_EQ(victim_add(5, 2), 17);
  load("counts");
  EXPECT_NE(code_of(victim_add), add_);
  EXPECT_EQ(victim_add(5, 2), 17);
  EXPECT_EQ(interpose_board.entries, 1);
  EXPECT_EQ(interpose_board.returns, 1);
  EXPECT_EQ(interpose_board.last_a, 5);
  EXPECT_EQ(interpose_board.last_b, 2);
  EXPECT_EQ(interpose_board.last_result, 17);
  unload("counts");
  EXPECT_EQ(code_of(victim_add), add_);
  EXPECT_EQ(victim_add(5, 2), 17);
  EXPECT_EQ(interpose_board.entries, 1);
}

TEST_F(Functions, ComeAndGoAgainAndAgain) {
  for (int i = 1; i <= 20; ++i) {
    load("counts");
    EXPECT_EQ(victim_add(i, 0), 3 * i);
    EXPECT_EQ(interpose_board.entries, i);
    unload("counts");
  }
}

TEST_F(Functions, ModulesStackInOrder) {
  load("doubles");
  load("adds");
  errno = 5;
  EXPECT_EQ(victim_add(1, 0), 2 * 3 + 1);
  EXPECT_EQ(errno, 5);
  ASSERT_EQ(molt_hook_set_order("libinterpose_victim.so:victim_add:after", "adds,doubles"), 0)
      << molt_last_error();
  EXPECT_EQ(victim_add(1, 0), 2 * (3 + 1));
  load("counts");
  EXPECT_EQ(victim_add(1, 0), 2 * (3 + 1));
  EXPECT_EQ(interpose_board.last_result, 8);
  unload("doubles");
  EXPECT_EQ(victim_add(1, 0), 3 + 1);
  unload("adds");
  EXPECT_EQ(victim_add(1, 0), 3);
  unload("counts");
  EXPECT_EQ(molt_hook_set_order("libinterpose_victim.so:victim_add:after", nullptr), 0);
}

TEST_F(Functions, ACallIsAnswered) {
  load("refuses");
  errno = 5;
  EXPECT_EQ(victim_open("a", 8), 8);
  EXPECT_EQ(errno, 77);  // the function's own
  EXPECT_EQ(interpose_board.inside, 1);
  errno = 5;
  EXPECT_EQ(victim_open(".a", 8), -1);
  EXPECT_EQ(errno, EACCES);
  unload("refuses");
  EXPECT_EQ(victim_open(".a", 8), 8);
}

TEST_F(Functions, ACallbackThatThrows) {
  load("throws");
  EXPECT_EQ(victim_open("a", 8), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(victim_add(1, 1), 4);  // as if it were not there
  unload("throws");
}

TEST_F(Functions, EveryKindOfArgument) {
  load("all_kinds");
  EXPECT_EQ(victim_mean(3, 4), 103.5);
  EXPECT_EQ(interpose_board.last_float, 3.5);
  const long wanted = 1 + 4 + 9 + 16 + 25 + 36 + 49 + 64 + 85;
  EXPECT_EQ(victim_many(1, 2, 3, 4, 5, 6, 7, 8, 9.5), wanted);
  EXPECT_EQ(interpose_board.last_a, 7);
  EXPECT_EQ(interpose_board.last_b, 8);
  EXPECT_EQ(interpose_board.last_float, 9.5);
  EXPECT_EQ(interpose_board.last_result, wanted);
  EXPECT_EQ(victim_sum(3, 1.0, 2.0, 4.0), 7);
  EXPECT_EQ(interpose_board.last_float, 4.0);
  EXPECT_EQ(interpose_board.last_result, 7);
  unload("all_kinds");
}

TEST_F(Functions, OfTheProgramItself) {
  load("own_function");
  EXPECT_EQ(functions_test_local(4), 9);
  EXPECT_EQ(functions_test_local(13), -13);
  EXPECT_EQ(interpose_board.entries, 2);
  unload("own_function");
  EXPECT_EQ(functions_test_local(13), 27);
}

TEST_F(Functions, ExceptionsOfTheFunctionPass) {
  load("counts");
  EXPECT_THROW(victim_throws(3), int);
  EXPECT_EQ(victim_throws(-3), -3);
  EXPECT_EQ(interpose_board.entries, 2);
  EXPECT_EQ(interpose_board.returns, 1);
  unload("counts");
}

// A thread that sleeps in the function has the wrapper's frame on its stack, and nothing of the
// module: the module can go, and the result then has nobody to see it.
TEST_F(Functions, AThreadMaySleepInTheFunction) {
  load("counts");
  std::atomic<unsigned> word{0};
  int result = 0;
  std::thread sleeper([&] { result = victim_sleeps(&word); });
  while (interpose_board.inside != 1) std::this_thread::yield();
  unload("counts");
  word = 4;
  syscall(SYS_futex, &word, FUTEX_WAKE, 1, nullptr, nullptr, 0);
  sleeper.join();
  EXPECT_EQ(result, 4);
  EXPECT_EQ(interpose_board.inside, 1);
}

TEST_F(Functions, TheCLibrarysOwn) {
  load("opens");
  const long before = interpose_board.entries;
  const int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  EXPECT_GE(fd, 0);
  EXPECT_EQ(interpose_board.entries, before + 1);
  EXPECT_EQ(interpose_board.last_result, fd);
  close(fd);
  // One function under two names.
  EXPECT_EQ(molt_load(path_of("wrong_alias").c_str(), nullptr, 0, -1), -EBUSY);
  EXPECT_NE(std::strstr(molt_last_error(), "libc.so.6:open64"), nullptr) << molt_last_error();
  unload("opens");
}

TEST_F(Functions, Refusals) {
  const struct {
    const char* module;
    int error;
    const char* word;
  } wrong[] = {{"wrong_library", -ENOENT, "libnowhere"},
               {"wrong_function", -ENOENT, "victim_nowhere"},
               {"wrong_indirect", -EINVAL, "indirect"},
               {"wrong_runtime", -EINVAL, "the runtime's own"},
               {"wrong_value", -ENOTSUP, "by value"}};
  for (const auto& w : wrong) {
    EXPECT_EQ(molt_load(path_of(w.module).c_str(), nullptr, 0, -1), w.error) << w.module;
    const std::string text = molt_last_error();
    const bool named =
        text.find(w.word) != std::string::npos || text.find("structure") != std::string::npos;
    EXPECT_TRUE(named) << w.module << ": " << text;
  }
  load("counts");
  EXPECT_EQ(molt_load(path_of("wrong_signature").c_str(), nullptr, 0, -1), -EINVAL);
  EXPECT_NE(std::strstr(molt_last_error(), "i32(i32,i32)"), nullptr) << molt_last_error();
  unload("counts");
}

// A jump takes more bytes than the function has. Whose the ones behind it are, a stripped file does not say.
TEST_F(Functions, BytesBesideAFunctionMustBeNobodys) {
  const std::string folder = std::string(std::getenv("MOLT_LIB")) + "/";
  for (const bool is_stripped : {false, true}) {
    const std::string name = is_stripped ? "tiny_stripped" : "tiny";
    void* library = dlopen((folder + "libinterpose_" + name + ".so").c_str(), RTLD_NOW);
    ASSERT_NE(library, nullptr) << dlerror();
    auto* tiny = reinterpret_cast<long (*)(long)>(dlsym(library, "tiny"));
    const std::string code = code_of(tiny);
    if (is_stripped) {
      EXPECT_EQ(molt_load(path_of(name).c_str(), nullptr, 0, -1), -ENOTSUP);
      EXPECT_NE(std::strstr(molt_last_error(), "cannot be redirected"), nullptr)
          << molt_last_error();
      EXPECT_EQ(code_of(tiny), code);
    } else {
      load(name);
      EXPECT_EQ(tiny(7), 7);
      EXPECT_EQ(interpose_board.entries, 1);
      unload(name);
    }
    EXPECT_EQ(code_of(tiny), code);
    dlclose(library);
  }
}

// What was to be hooked beside a function that cannot be is not hooked.
TEST_F(Functions, AllOrNothing) {
  load("opens");
  EXPECT_NE(molt_load(path_of("wrong_alias").c_str(), nullptr, 0, -1), 0);
  EXPECT_EQ(code_of(victim_add), add_);
  unload("opens");
}

TEST_F(Functions, ForkedChildrenHaveThem) {
  load("counts");
  const pid_t child = fork();
  if (child == 0) {
    bool good = victim_add(1, 1) == 4 && interpose_board.entries == 1;
    good = good && molt_unload("counts", 0, -1) == 0 && code_of(victim_add) == add_;
    good = good && victim_add(1, 1) == 4 && interpose_board.entries == 1;
    _exit(good ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_NE(code_of(victim_add), add_);
  unload("counts");
}

// Threads that call all the time, while hooks come and go.
TEST_F(Functions, UnderLoad) {
  std::atomic<bool> stop{false};
  std::atomic<long> calls{0}, wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      for (long n = 0; !stop; ++n) {
        if (victim_add(n, 1) != 3 * n + 1) ++wrong;
        try {
          victim_throws(static_cast<int>(n % 3));
        } catch (int) {
        }
        ++calls;
      }
    });
  }
  for (int i = 0; i < 10; ++i) {
    load("counts");
    load("refuses");
    unload("counts");
    unload("refuses");
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(calls, 1000);
  EXPECT_GT(interpose_board.entries, 0);
}

// A module that stays sees each call once from either side, whatever comes and goes beside it.
TEST_F(Functions, EachCallIsSeenOnce) {
  load("counts");
  std::atomic<bool> stop{false};
  std::atomic<long> calls{0}, thrown{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      for (long n = 0; !stop; ++n) {
        victim_add(n, 1);
        ++calls;
        try {
          victim_throws(static_cast<int>(n % 3));
        } catch (int) {
          ++thrown;
        }
        ++calls;
      }
    });
  }
  for (int i = 0; i < 10; ++i) {
    load("doubles");
    load("adds");
    ASSERT_EQ(molt_hook_set_order("libinterpose_victim.so:victim_add:after", "adds,counts,doubles"),
              0);
    unload("doubles");
    unload("adds");
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(interpose_board.entries, calls);
  EXPECT_EQ(interpose_board.returns, calls - thrown);
  EXPECT_GT(calls, 1000);
  ASSERT_EQ(molt_hook_set_order("libinterpose_victim.so:victim_add:after", nullptr), 0);
  unload("counts");
}

}  // namespace
