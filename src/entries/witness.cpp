#include "entries/witness.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "arch/x86_64/trap.hpp"
#include "base/futex.hpp"
#include "base/own_fd.hpp"
#include "threads/census.hpp"
#include "threads/procfs.hpp"
#include "threads/residency.hpp"

namespace molt::entries {
namespace {

// Also where that cannot be seen: descriptors may be used up.
bool blocks_sigtrap(int tid) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
  const OwnFd fd = own_open(path, O_RDONLY);
  if (!fd) return errno != ENOENT && errno != ESRCH;
  char text[4096];
  const ssize_t n = read(fd.get(), text, sizeof text - 1);
  if (n <= 0) return false;  // it has gone
  text[n] = '\0';
  const char* mask = std::strstr(text, "\nSigBlk:");
  unsigned long long blocked = 0;
  constexpr unsigned long long sigtrap = 1ull << (5 - 1);
  return mask != nullptr && std::sscanf(mask + 8, " %llx", &blocked) == 1 && (blocked & sigtrap);
}

// Those who were listed last, if they are all (N5), else those of a new listing; one, if it is as the last
// one was. Whoever is born afterwards is in no listing, and has the mask of a thread that is looked at here.
Status list_blocking(std::vector<int>& tids) {
  Status verdict;
  const int asker = gettid();
  Status asked = threads::inspect([&](threads::Census& census) {
    const auto ask_everybody = [&] {
      bool all_slept = true, asker_sleeps = true;  // it waits for us
      tids.clear();
      for (threads::Thread* thread : census.threads()) {
        bool& slept = thread->tid == asker ? asker_sleeps : all_slept;
        if (threads::blocks_sigtrap(census, *thread, slept)) tids.push_back(thread->tid);
      }
      return all_slept;
    };
    const std::size_t count = census.count();
    if (ask_everybody() && census.is_all(count)) return;
    const std::uint64_t before = census.changes();
    verdict = census.list();
    if (verdict && census.changes() != before) verdict = census.refresh();
    if (verdict) ask_everybody();
  });
  return asked ? verdict : asked;
}

}  // namespace

// Threads block all signals for a moment when they begin and end: only who goes on does matters.
Status ThreadWitness::no_thread_blocks_sigtrap() {
  // But not if they may have begun a handler since.
  if (others_let_traps_in_ && !arch::trap_host_may_block()) {
    sigset_t own;
    if (pthread_sigmask(SIG_BLOCK, nullptr, &own) == 0 && sigismember(&own, SIGTRAP) == 0)
      return {};
  }
  const Deadline patience = Deadline::in_ms(patience_ms_);
  std::vector<int> blocking;
  if (Status listed = list_blocking(blocking); !listed) return listed;
  for (;;) {
    std::erase_if(blocking, [](int tid) { return !blocks_sigtrap(tid); });
    if (blocking.empty()) return {};
    if (patience.passed()) break;
    timespec pause{0, 1'000'000};
    nanosleep(&pause, nullptr);  // tidy: sleep-ok nobody tells when a mask changes
  }
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/task/%d/status", blocking.front());
  if (!own_open(path, O_RDONLY)) {
    return fail_errno(errno, "whether thread %d blocks SIGTRAP cannot be seen", blocking.front());
  }
  return fail(
      {EBUSY, arch::refusal_name(arch::Refusal::traps_blocked)},
      "thread %d (%s) blocks SIGTRAP, and the int3 that a safe change of code needs would kill "
      "it; `molt` opens it where it may trace the process; else let it unblock SIGTRAP, or "
      "build with -fpatchable-function-entry=8,6",
      blocking.front(), threads::thread_name(blocking.front()).c_str());
}

Status ThreadWitness::no_thread_within(std::span<const arch::CodeRange> ranges) {
  threads::RangeSet set;
  for (const arch::CodeRange& range : ranges) set.add(range.begin, range.end);
  threads::ProofOptions options;
  options.deadline = Deadline::in_ms(patience_ms_);
  options.own_frame = own_frame_;
  options.foreseen = foreseen_;
  options.last_means = threads::LastMeans::signal;
  // It cannot come back in: a look at itself takes it no time.
  options.last_means_after = Deadline::in_ms(running_ms_);
  options.cancelled = [] {
    (void)arch::trap_stay();  // the host may put its own handler over ours meanwhile
    return false;
  };
  auto proof = threads::prove_out(set, options);
  if (!proof) return pass(proof);
  if (proof->out()) return {};
  const threads::Finding& who = proof->holders.front();
  return fail({EBUSY, arch::refusal_name(arch::Refusal::in_use)},
              "thread %d (%s) stands in the first bytes of the function (%s); try again", who.tid,
              who.name, who.reason);
}

}  // namespace molt::entries
