// Every allocation in an operation fails once: the operation succeeds nevertheless, or answers
// -ENOMEM and leaves nothing; the process lives on. malloc and its relatives are interposed by this
// program, for the runtime, its C++ library and the dynamic loader alike.
#include <dlfcn.h>

#include "fixture.hpp"

namespace {

// Allocations of the armed thread until the one that fails; 0: none fails.
thread_local long countdown = 0;
thread_local bool failed_one = false;

bool fails_now() {
  if (countdown == 0 || --countdown != 0) return false;
  failed_one = true;
  errno = ENOMEM;
  return true;
}

}  // namespace

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t bytes) { return fails_now() ? nullptr : __libc_malloc(bytes); }
void* calloc(size_t count, size_t bytes) {
  return fails_now() ? nullptr : __libc_calloc(count, bytes);
}
void* realloc(void* old, size_t bytes) {
  return fails_now() ? nullptr : __libc_realloc(old, bytes);
}
void* memalign(size_t alignment, size_t bytes) {
  return fails_now() ? nullptr : __libc_memalign(alignment, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }
int posix_memalign(void** result, size_t alignment, size_t bytes) {
  void* memory = memalign(alignment, bytes);
  if (memory == nullptr) return ENOMEM;
  *result = memory;
  return 0;
}
}

namespace {

class Allocation : public ModuleTest {
 protected:
  // Calls `operation` with its n-th allocation failing, for n = 1, 2, ... until none fails any more.
  // `check` looks at the result; it runs with nothing failing.
  static void every_failure(const std::function<int()>& operation,
                            const std::function<void(int)>& check) {
    for (long n = 1; n < 5000; ++n) {
      SCOPED_TRACE("allocation " + std::to_string(n));
      failed_one = false;
      countdown = n;
      int result = operation();
      countdown = 0;
      bool reached = failed_one;
      check(result);
      if (testing::Test::HasFailure()) return;
      if (!reached) {
        EXPECT_EQ(result, 0);
        RecordProperty("allocations", static_cast<int>(n - 1));
        return;
      }
    }
    FAIL() << "the operation does not end";
  }
  static void SetUpTestSuite() {
    ASSERT_EQ(molt_load(module_file("probe").c_str(), nullptr, 0, -1), 0) << molt_last_error();
    ASSERT_EQ(molt_unload("probe", 0, -1), 0);
    on_probe(1);
  }
};

TEST_F(Allocation, InLoad) {
  Traces before = Traces::now();
  std::string file = module_file("probe");
  every_failure([&] { return molt_load(file.c_str(), "number=3 text=abc", 0, -1); },
                [&](int result) {
                  if (result == 0) {
                    EXPECT_EQ(on_probe(1), 101);
                    EXPECT_TRUE(is(unload("probe"), 0));
                  } else {
                    EXPECT_EQ(errno_text(result), "-ENOMEM") << molt_last_error();
                    EXPECT_STRNE(molt_last_error(), "");
                  }
                  expect_gone("probe", before);
                });
}

// Unloading must not need memory: there may be none, and that may be why.
TEST_F(Allocation, InUnload) {
  Traces before = Traces::now();
  std::string file = module_file("probe");
  ASSERT_EQ(molt_load(file.c_str(), nullptr, 0, -1), 0);
  every_failure([&] { return molt_unload("probe", 0, -1); },
                [&](int result) {
                  if (result == 0) {
                    molt_gc();
                    expect_gone("probe", before);
                    EXPECT_TRUE(is(load("probe"), 0));
                  } else {
                    EXPECT_EQ(errno_text(result), "-ENOMEM") << molt_last_error();
                    EXPECT_EQ(on_probe(1), 101) << "neither there nor gone";
                  }
                });
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Allocation, InReplace) {
  Traces before = Traces::now();
  std::string file = module_file("counter_2");
  every_failure(
      [&] {
        long armed = std::exchange(countdown, 0);
        EXPECT_EQ(molt_load(module_file("counter_1").c_str(), nullptr, 0, -1), 0);
        EXPECT_EQ(on_probe(5), 1005);
        countdown = armed;
        return molt_replace("counter", file.c_str(), nullptr, 0, -1);
      },
      [&](int result) {
        EXPECT_TRUE(result == 0 || result == -ENOMEM) << errno_text(result) << molt_last_error();
        EXPECT_EQ(on_probe(1), result == 0 ? 2006 : 1006);
        EXPECT_TRUE(is(unload("counter"), 0));
        molt_gc();
        expect_gone("counter", before);
      });
}

TEST_F(Allocation, InHooks) {
  ASSERT_TRUE(is(load("probe"), 0));
  for (long n = 1; n < 20; ++n) {
    std::thread([n] {
      countdown = n;
      EXPECT_EQ(on_probe(1), 101) << "a first call of a new thread";
      countdown = 0;
    }).join();
  }
  EXPECT_TRUE(is(unload("probe"), 0));
}

}  // namespace
