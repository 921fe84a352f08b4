// A program goes on passing its own tests while every function of it is replaced by its own copy, and
// put back, again and again.

#include "self.hpp"

#include <unistd.h>

#include <atomic>
#include <vector>

#include "patching.hpp"

extern "C" const char __executable_start, etext;

namespace {

bool is_the_programs(const void* code) { return code >= &__executable_start && code < &etext; }

TEST(Self, PassesItsTestsWhileAllOfItIsReplaced) {
  std::atomic<bool> stop{false};
  std::atomic<long> rounds_in_program{0}, rounds_in_patch{0};
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < 3; ++i) {
    threads.emplace_back([&, i] {
      for (unsigned n = 0; !stop; ++n) {
        ++(is_the_programs(self_where()) ? rounds_in_program : rounds_in_patch);
        const std::string problem = self_tests(1000 * i + n);
        if (problem.empty()) continue;
        ++failures;
        ADD_FAILURE() << problem;
      }
    });
  }
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(apply("lp_self"), "");
    EXPECT_FALSE(is_the_programs(self_where()));
    EXPECT_EQ(self_tests(1), "");
    const long seen = rounds_in_patch;
    EXPECT_TRUE(eventually([&] { return rounds_in_patch > seen + 10; }));
    EXPECT_EQ(revert("lp_self"), "");
    EXPECT_TRUE(is_the_programs(self_where()));
    EXPECT_EQ(self_tests(1), "");
    const long before = rounds_in_program;
    EXPECT_TRUE(eventually([&] { return rounds_in_program > before + 10; }));
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
}

}  // namespace
