// Unloading what threads are still in, threads that the core never heard of.

#define MODULE_TEST_AUDIT
#include "fixture.hpp"
#include "lingering.hpp"

#include <pthread.h>

namespace {

class Residency : public ModuleTest {
 protected:
  ~Residency() override {
    lingering().release();
    for (pthread_t thread : threads_) pthread_join(thread, nullptr);
    lingering().released.store(0, std::memory_order_release);
    molt_gc();
  }
  // A thread as a module without manners would start it: nobody counts it.
  void linger(const char* name) {
    void* (*run)(void*) = lingering().run.load(std::memory_order_acquire);
    const std::uint32_t before = lingering().inside.load(std::memory_order_acquire);
    pthread_t thread;
    ASSERT_EQ(pthread_create(&thread, nullptr, run, &lingering()), 0);
    pthread_setname_np(thread, name);
    threads_.push_back(thread);
    ASSERT_TRUE(eventually(
        [&] { return lingering().inside.load(std::memory_order_acquire) == before + 1; }));
  }
  void let_go() {
    lingering().release();
    for (pthread_t thread : threads_) pthread_join(thread, nullptr);
    threads_.clear();
  }
  static bool is_mapped() {
    std::ifstream maps("/proc/self/maps");
    const std::string text{std::istreambuf_iterator<char>(maps), {}};
    return text.find("lingerer") != std::string::npos || text.find(stored_) != std::string::npos;
  }
  // The store's name of the module's file, while it is loaded.
  static void remember_where() {
    stored_ = "\1";
    void* (*run)(void*) = lingering().run.load(std::memory_order_acquire);
    const auto at = reinterpret_cast<std::uintptr_t>(run);
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
      unsigned long begin = 0, end = 0;
      std::sscanf(line.c_str(), "%lx-%lx", &begin, &end);
      const std::size_t path = line.find_first_of("/");
      if (at >= begin && at < end && path != std::string::npos) stored_ = line.substr(path);
    }
    ASSERT_NE(stored_, "\1");
  }

  static inline std::string stored_;
  std::vector<pthread_t> threads_;
};

TEST_F(Residency, NobodyInsideIsUnmapped) {
  ASSERT_TRUE(is(load("lingerer"), 0));
  remember_where();
  EXPECT_TRUE(is_mapped());
  EXPECT_TRUE(is(unload("lingerer"), 0));
  EXPECT_FALSE(is_mapped());
}

TEST_F(Residency, AThreadOfNobodysHoldsTheMemoryNotTheName) {
  ASSERT_TRUE(is(load("lingerer"), 0));
  remember_where();
  linger("lingers");
  Answer answer = unload("lingerer", 0, 50);
  EXPECT_TRUE(is(answer, 0));
  for (const char* words : {"resident: ", "(lingers)", "linger+0x", "futex"}) {
    EXPECT_NE(answer.reason.find(words), std::string::npos) << answer.reason;
  }
  EXPECT_EQ(board().exits, 1);
  EXPECT_TRUE(is_mapped());
  EXPECT_EQ(molt_gc(), 0) << "it is still inside";
  // The name is free.
  EXPECT_TRUE(is(unload("lingerer"), -ENOENT));
  let_go();
  EXPECT_EQ(molt_gc(), 1);
  EXPECT_FALSE(is_mapped());
}

TEST_F(Residency, UnloadWaitsForIt) {
  ASSERT_TRUE(is(load("lingerer"), 0));
  remember_where();
  linger("lingers");
  Sleeper unloader([&] { EXPECT_TRUE(is(unload("lingerer", 0, 20'000), 0)); });
  ASSERT_TRUE(eventually([] { return board().exits == 1; }));
  EXPECT_FALSE(unloader.done());
  let_go();
  unloader.join();
  EXPECT_FALSE(is_mapped());
}

TEST_F(Residency, LazyUnloadFreesItInTheBackground) {
  ASSERT_TRUE(is(load("lingerer"), 0));
  remember_where();
  linger("lingers");
  EXPECT_TRUE(is(unload("lingerer", MOLT_UNLOAD_LAZY), 0));
  EXPECT_TRUE(is_mapped());
  let_go();
  EXPECT_TRUE(eventually([] { return !is_mapped(); }));
}

TEST_F(Residency, LazyExitWaitsForReferences) {
  if (under_tsan) GTEST_SKIP() << not_under_tsan;
  // On a thread that ends: words that a load leaves on the stack may be taken for return addresses.
  Sleeper user([&] {
    ASSERT_TRUE(is(load("lingerer"), 0));
    remember_where();
    molt_module* module = molt_module_find_get("lingerer");
    ASSERT_NE(module, nullptr);
    EXPECT_TRUE(is(unload("lingerer"), -EAGAIN));
    EXPECT_TRUE(is(unload("lingerer", MOLT_UNLOAD_LAZY), 0));
    EXPECT_EQ(board().exits, 0);
    EXPECT_TRUE(is_mapped());
    EXPECT_EQ(molt_module_put(module), 0);
  });
  user.join();
  EXPECT_TRUE(eventually([] { return !is_mapped(); }));
  EXPECT_EQ(board().exits, 1);
}

TEST_F(Residency, GcUnloadsWhatWasUsedAndIsNot) {
  ASSERT_TRUE(is(load("provider"), 0));
  EXPECT_EQ(molt_gc(), 0) << "it waits for its first user";
  ASSERT_TRUE(is(load("user"), 0));
  EXPECT_EQ(molt_gc(), 0) << "it has one";
  EXPECT_TRUE(is(unload("user"), 0));
  EXPECT_EQ(molt_gc(), 1);
  EXPECT_TRUE(is(unload("provider"), -ENOENT));
}

TEST_F(Residency, ProvidersOutliveWhoIsLeftInMemory) {
  ASSERT_TRUE(is(load("provider"), 0));
  ASSERT_TRUE(is(load("user"), 0));
  molt_module* module = molt_module_find_get("user");
  ASSERT_NE(module, nullptr);
  EXPECT_TRUE(is(unload("user", MOLT_UNLOAD_RESIDENT), 0));
  EXPECT_TRUE(is(unload("provider"), -EAGAIN, {"user", "left in memory"}));
  EXPECT_EQ(molt_module_put(module), 0);
  EXPECT_EQ(molt_gc(), 2) << "the user, then what only it needed";
}

}  // namespace
