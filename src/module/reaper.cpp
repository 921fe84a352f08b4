// reaper.cpp - the background: lazily unloaded modules are freed as soon as that is proven safe, and
// gc() is repeated if somebody asked for that.
//
// Roles      One thread, "molt-gc", that lives only while there is something to wait for. It runs
//            module code (exit(), destructors), so it has the host's descriptors and holds no lock.
// Progress   It looks again after 10 ms, 20 ms, ... 1 s, and whenever a module's state changes.
// Death      fork: the child has none; the next lazy unload there, or interval, starts one.

#include <algorithm>

#include "module/internal.hpp"
#include "threads/own_thread.hpp"

namespace molt::module {
namespace {

constexpr std::int64_t first_pause_ms = 10;
constexpr std::int64_t longest_pause_ms = 1000;

struct Reaper {
  bool runs = false;
  int interval_s = 0;
};
// Under Manager::mutex.
Reaper& reaper() {
  static Reaper* r = new Reaper;
  return *r;
}

bool has_lazy() {
  const auto& all = manager().residents;
  return std::any_of(all.begin(), all.end(), [](const ModulePtr& m) { return m->lazy; });
}

void* run(void*) {
  std::int64_t pause_ms = first_pause_ms;
  Deadline next_gc;
  int interval_s = 0;
  Lock lock(manager().mutex);
  for (;;) {
    if (reaper().interval_s != interval_s) {
      interval_s = reaper().interval_s;
      next_gc = Deadline::in_ms(interval_s == 0 ? -1 : interval_s * std::int64_t{1000});
    }
    const bool lazy = has_lazy();
    if (!lazy && interval_s == 0) break;
    const std::uint32_t seen = manager().changes.load(std::memory_order_acquire);
    lock.unlock();
    threads::clean_stack_below();
    if (next_gc.passed()) {
      gc(false);
      next_gc = Deadline::in_ms(interval_s * std::int64_t{1000});
    } else if (lazy && finish_lazy()) {
      pause_ms = first_pause_ms;
    }
    // Looking is a change itself: what woke us must not keep us awake.
    const Deadline pause = lazy ? Deadline::in_ms(pause_ms) : next_gc;
    if (lazy) {
      const timespec t{pause_ms / 1000, pause_ms % 1000 * 1'000'000};
      nanosleep(&t, nullptr);
      pause_ms = std::min(2 * pause_ms, longest_pause_ms);
    } else {
      futex_wait(manager().changes, seen, pause);
    }
    lock.lock();
  }
  reaper().runs = false;
  return nullptr;
}

}  // namespace

void reap_in_background() {
  Lock lock(manager().mutex);
  if (reaper().runs) return;
  auto thread = threads::start_thread("molt-gc", threads::default_stack, run, nullptr);
  if (!thread) {
    log::line("", "molt: nothing is freed in the background: %s", thread.error().detail);
    return;
  }
  pthread_detach(*thread);
  reaper().runs = true;
}

void set_gc_interval(int seconds) {
  {
    Lock lock(manager().mutex);
    reaper().interval_s = std::max(seconds, 0);
    announce_change();
  }
  if (seconds > 0) reap_in_background();
}

int gc_interval() {
  Lock lock(manager().mutex);
  return reaper().interval_s;
}

void reaper_after_fork() { reaper() = {}; }

}  // namespace molt::module
