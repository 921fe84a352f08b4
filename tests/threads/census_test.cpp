// The census, and the host that must not notice it.

#include <dirent.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "victims.hpp"

namespace {

using namespace molt;
using namespace molt::threads;
using victims::Code;
using victims::Gate;
using victims::in_child;
using victims::sleeps_in;
using victims::until;
using victims::Victim;

std::set<int> listed() {
  std::set<int> tids;
  Status ran = inspect([&](Census& census) {
    Status ok = census.refresh();
    EXPECT_TRUE(ok);
    for (const Thread* thread : census.threads()) tids.insert(thread->tid);
  });
  EXPECT_TRUE(ran);
  return tids;
}

std::set<int> descriptors() {
  std::set<int> numbers;
  DIR* listing = opendir("/proc/self/fd");
  while (const dirent* entry = readdir(listing)) numbers.insert(atoi(entry->d_name));
  numbers.erase(dirfd(listing));
  closedir(listing);
  return numbers;
}

TEST(Census, ListsAllThreadsButItsOwn) {
  Gate gate;
  {
    std::vector<std::unique_ptr<Victim>> victims;
    for (int i = 0; i < 20; ++i) {
      victims.push_back(std::make_unique<Victim>([&] { gate.wait(); }));
    }
    const std::set<int> tids = listed();
    EXPECT_TRUE(tids.contains(gettid()));
    for (const auto& victim : victims) EXPECT_TRUE(tids.contains(victim->tid()));
    int own = 0;
    ASSERT_TRUE(inspect([&](Census&) {
      own = gettid();
      EXPECT_TRUE(on_census_thread());
    }));
    EXPECT_FALSE(tids.contains(own));
    EXPECT_FALSE(on_census_thread());
    gate.open();
  }
  EXPECT_LE(listed().size(), 2u);  // a sanitizer has a thread of its own
}

TEST(Census, JobsInJobsRunAtOnce) {
  int depth = 0;
  ASSERT_TRUE(inspect([&](Census&) {
    ++depth;
    ASSERT_TRUE(inspect([&](Census&) { ++depth; }));
  }));
  EXPECT_EQ(depth, 2);
}

// A number that is used again is another thread (N2). Numbers are given out in turn, so one comes
// back only if the test makes it: by a new pid namespace's counter, which needs privilege, or by
// many births. Here the descriptors are asked directly.
TEST(Census, ADeadThreadIsKnownByItsDescriptors) {
  Gate gate;
  int tid = 0;
  auto victim = std::make_unique<Victim>([&] { gate.wait(); });
  tid = victim->tid();
  listed();
  gate.open();
  victim.reset();
  Code code;
  ASSERT_TRUE(inspect([&](Census& census) {
    Thread* thread = census.find(tid);
    ASSERT_NE(thread, nullptr);  // nothing was listed since
    until([&] { return look(census, *thread, code.range()).activity == Activity::gone; });
    EXPECT_EQ(look(census, *thread, code.range()).verdict, Verdict::out);
  }));
  EXPECT_FALSE(listed().contains(tid));
}

TEST(Census, TheHostSeesNoDescriptors) {
  Gate gate;
  {
    std::vector<std::unique_ptr<Victim>> victims;
    for (int i = 0; i < 30; ++i) {
      victims.push_back(std::make_unique<Victim>([&] { gate.wait(); }));
    }
    const std::set<int> before = descriptors();
    listed();
    EXPECT_EQ(descriptors(), before);
    gate.open();
  }
}

// A host that closes everything, as daemons do.
TEST(Census, SurvivesCloseAll) {
  EXPECT_EQ(in_child([] {
              Code code;
              if (!start_census()) return 1;
              for (int fd = 3; fd < 4096; ++fd) close(fd);
              syscall(SYS_close_range, 3u, ~0u, 0);
              auto proof = prove_out(code.range(), {Deadline::in_ms(10'000), {}});
              return proof && proof->out() ? 0 : 2;
            }),
            0);
}

// More threads than descriptors: those that are left over are opened for each look.
TEST(Census, SmallDescriptorLimit) {
  EXPECT_EQ(in_child([] {
              Code code;
              Gate inside, outside;
              const rlimit limit{100, 4096};
              setrlimit(RLIMIT_NOFILE, &limit);
              std::vector<std::unique_ptr<Victim>> victims;
              for (int i = 0; i < 80; ++i) {
                victims.push_back(std::make_unique<Victim>([&, i] {
                  if (i == 79) code.call(Gate::wait_at, &inside);
                  outside.wait();
                }));
              }
              const int holder = victims.back()->tid();
              until([&] { return outside.waiting() == 79 && sleeps_in(holder, SYS_futex); });
              const void* frame = __builtin_frame_address(0);
              ProofOptions options;
              options.own_frame = frame;
              options.deadline = Deadline::in_ms(0);
              auto proof = prove_out(code.range(), options);
              if (!proof || proof->holders.size() != 1) return 1;
              if (proof->holders[0].tid != holder) return 2;
              inside.open();
              options.deadline = Deadline::in_ms(20'000);
              proof = prove_out(code.range(), options);
              outside.open();
              victims.clear();
              return proof && proof->out() ? 0 : 3;
            }),
            0);
}

// Descriptors that were opened before the process gave up its rights go on working; a thread born
// later cannot be looked at, and that is not a proof.
TEST(Census, NotDumpable) {
  EXPECT_EQ(in_child([] {
              Code code;
              Gate gate;
              Victim before([&] { gate.wait(); });
              until([&] { return sleeps_in(before.tid(), SYS_futex); });
              if (!start_census()) return 1;
              // Root may open what belongs to root.
              if (geteuid() == 0 && setresuid(65534, 65534, 65534) != 0) return 2;
              prctl(PR_SET_DUMPABLE, 0);
              Victim after([&] { gate.wait(); });
              until([&] { return gate.waiting() == 2; });

              auto early = look_at(before.tid(), code.range());
              auto late = look_at(after.tid(), code.range());
              int result = 0;
              if (!early || early->verdict != Verdict::out) result = 3;
              if (!late || late->verdict != Verdict::unknown) result = 4;
              if (late && std::strstr(late->reason, "born after") == nullptr) result = 5;
              gate.open();
              return result;
            }),
            0);
}

// --- fork --------------------------------------------------------------------------------------------

// As the runtime registers them.
struct ForkHandlers {
  ForkHandlers() {
    pthread_atfork(
        census_before_fork, [] { census_after_fork(false); }, [] { census_after_fork(true); });
  }
} fork_handlers;

TEST(Fork, TheChildHasACensusOfItsOwn) {
  listed();
  EXPECT_EQ(in_child([] {
              Code code;
              const std::set<int> before = descriptors();
              auto proof = prove_out(code.range(), {Deadline::in_ms(10'000), {}});
              if (!proof || !proof->out()) return 1;
              return descriptors() == before ? 0 : 2;
            }),
            0);
  listed();
}

// The child's only thread runs on the stack of the one that forked.
TEST(Fork, FromAnotherThread) {
  listed();
  int result = -1;
  {
    Victim forker([&] {
      result = in_child([] {
        // Made by another thread, and on the heap: this one's stack shall not have its address.
        std::unique_ptr<Code> made;
        {
          Victim maker([&] { made = std::make_unique<Code>(); });
        }
        const Code& code = *made;
        auto finding = look_at(gettid(), code.range());
        Gate gate;
        Victim other([&] { code.call(Gate::wait_at, &gate); });
        until([&] { return sleeps_in(other.tid(), SYS_futex); });
        auto inside = look_at(other.tid(), code.range());
        // The forked thread looked at by its own child.
        std::atomic<int> main_verdict{-1};
        const int main_tid = gettid();
        {
          // Waited for by joining: so the main thread sleeps.
          Victim looker([&] {
            until([&] { return sleeps_in(main_tid, SYS_futex); });
            auto f = look_at(main_tid, code.range());
            main_verdict = f ? static_cast<int>(f->verdict) : -2;
          });
        }
        gate.open();
        if (!inside || inside->verdict != Verdict::inside) return 1;
        if (main_verdict != static_cast<int>(Verdict::out)) return 2;
        return finding ? 0 : 3;
      });
    });
  }
  EXPECT_EQ(result, 0);
}

// --- kernels that have less ------------------------------------------------------------------------------

struct WithoutRunCount {
  WithoutRunCount() {
    EXPECT_TRUE(inspect([](Census& c) { c.count_runs(false); }));
  }
  ~WithoutRunCount() {
    EXPECT_TRUE(inspect([](Census& c) { c.count_runs(true); }));
  }
};
struct WithoutQuery {
  WithoutQuery() {
    EXPECT_TRUE(inspect([](Census& c) { c.maps().query(false); }));
  }
  ~WithoutQuery() {
    EXPECT_TRUE(inspect([](Census& c) { c.maps().query(true); }));
  }
};

void prove_both_ways() {
  Code code;
  Gate inside, outside;
  {
    Victim holder([&] { code.call(Gate::wait_at, &inside); });
    Victim other([&] { outside.wait(); });
    until([&] { return sleeps_in(holder.tid(), SYS_futex) && sleeps_in(other.tid(), SYS_futex); });
    auto proof = prove_out(code.range(), {Deadline::in_ms(0), {}});
    ASSERT_TRUE(proof);
    ASSERT_EQ(proof->holders.size(), 1u);
    EXPECT_EQ(proof->holders[0].tid, holder.tid());
    EXPECT_EQ(proof->holders[0].verdict, Verdict::inside);
    inside.open();
    proof = prove_out(code.range(), {Deadline::in_ms(20'000), {}});
    ASSERT_TRUE(proof);
    EXPECT_TRUE(proof->out());
    outside.open();
  }
}

TEST(Kernel, WithoutRunCounts) {
  WithoutRunCount without;
  prove_both_ways();
}
TEST(Kernel, WithoutQueries) {
  WithoutQuery without;
  prove_both_ways();
}

}  // namespace
