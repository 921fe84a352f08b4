// How long changes take while threads run: module.unload_other_sleeps, module.unload_busy, hook.disable,
// hook.enable.
//
// unload_other_sleeps: a thread sleeps for 300 ms inside module A; the same thread's chain has module
// B next. B is to go. What B has to wait for is that no thread is inside B and none will enter it; the
// sleeper is in A and must not matter. The time runs from the call of molt_unload() to the first line
// of B's exit(): detached and drained. The rest of an unload (exit, the proof that nothing points into
// the module, dlclose, the proof that it is unmapped) comes after and is told apart.
//
// The rival is what one would use for this otherwise: callbacks in a list that readers walk under
// liburcu's read lock (its default flavour, which uses membarrier as Molt does), and synchronize_rcu()
// after B was taken out. It waits for every reader, so for the one in A too.

#include <molt/molt.h>

#include <urcu/urcu-memb.h>

#include <atomic>
#include <stdexcept>
#include <thread>

#include "benches.hpp"
#include "harness.hpp"
#include "hooks.hpp"
#include "modules.hpp"

namespace bench {
namespace {

constexpr unsigned sleep_ms = 300;

void wait_until_inside(const Request& request) {
  while (request.inside.load(std::memory_order_acquire) == 0) sched_yield();
}
void must_be_inside_still(const Request& request) {
  if (request.inside.load(std::memory_order_acquire) == 0) {
    throw std::runtime_error("the sleeper woke up meanwhile");
  }
}

double us(std::int64_t ns) { return static_cast<double>(ns) / 1000; }

struct UnloadTimes {
  double drained_us;
  double whole_us;
};

UnloadTimes unload_beside_sleeper() {
  std::int64_t exit_began = 0;
  load("bench_leaver");
  Request tell;
  tell.exit_began = &exit_began;
  sleep_here(&tell);

  Request request;
  request.sleep_ms = sleep_ms;
  std::thread sleeper([&] { sleep_here(&request); });
  wait_until_inside(request);
  std::int64_t from = now_ns();
  unload("bench_leaver");
  std::int64_t to = now_ns();
  must_be_inside_still(request);
  sleeper.join();
  if (exit_began < from) throw std::runtime_error("exit() did not say when it began");
  return {us(exit_began - from), us(to - from)};
}

double disable_beside_sleeper() {
  load("bench_leaver");
  Request request;
  request.sleep_ms = sleep_ms;
  std::thread sleeper([&] { sleep_here(&request); });
  wait_until_inside(request);
  std::int64_t from = now_ns();
  int error = molt_disable("bench_leaver");
  std::int64_t to = now_ns();
  must_be_inside_still(request);
  sleeper.join();
  unload("bench_leaver");
  if (error != 0) throw std::runtime_error("molt_disable failed");
  return us(to - from);
}

// The rival's list of callbacks, and its A.
struct RcuList {
  void (*callbacks[2])(Request*);
  unsigned count;
};
void rcu_sleeper(Request* request) {
  request->inside.store(1, std::memory_order_release);
  timespec left = {0, sleep_ms * 1'000'000L};
  while (nanosleep(&left, &left) != 0) {
  }
  request->inside.store(0, std::memory_order_release);
}
void rcu_leaver(Request*) {}

double synchronize_beside_sleeper() {
  RcuList both = {{rcu_sleeper, rcu_leaver}, 2};
  RcuList without = {{rcu_sleeper}, 1};
  RcuList* list = &both;
  Request request;
  std::thread sleeper([&] {
    urcu_memb_register_thread();
    urcu_memb_read_lock();
    const RcuList* now = rcu_dereference(list);
    for (unsigned k = 0; k < now->count; ++k) now->callbacks[k](&request);
    urcu_memb_read_unlock();
    urcu_memb_unregister_thread();
  });
  wait_until_inside(request);
  std::int64_t from = now_ns();
  rcu_assign_pointer(list, &without);
  urcu_memb_synchronize_rcu();
  std::int64_t to = now_ns();
  sleeper.join();
  return us(to - from);
}

void unload_other_sleeps(const Options& options, Report& report) {
  load("bench_sleeper");
  std::vector<double> drained, whole, disabled, rival;
  for (int i = 0; i < (options.quick ? 3 : 11); ++i) {
    UnloadTimes times = unload_beside_sleeper();
    drained.push_back(times.drained_us);
    whole.push_back(times.whole_us);
  }
  for (int i = 0; i < (options.quick ? 1 : 3); ++i) {
    disabled.push_back(disable_beside_sleeper());
    rival.push_back(synchronize_beside_sleeper());
  }
  unload("bench_sleeper");
  auto add = [&](const char* name, const std::vector<double>& values, const Goal& goal) {
    double value = median(values), other = median(rival);
    report.add({name, value, "us", "liburcu synchronize_rcu()", other, value / other, goal});
  };
  add("module.unload_other_sleeps", drained, Goal::value_at_most(10, "us"));
  add("module.unload_other_sleeps.disable", disabled, Goal::info());
  add("module.unload_other_sleeps.whole", whole, Goal::info());
}

// What earlier calls have left on the stack lies above this frame of 200 bytes, and twenty like it.
[[gnu::noinline]] int call_deep(Request* request, int depth) {
  volatile char room[200];
  room[depth] = 1;
  int sum = busy(request);
  if (depth != 0) sum += call_deep(request, depth - 1);
  return sum + room[depth];
}

// Eight threads run through the hook of the module that goes, and never sleep: each has to be proven out
// while it runs.
void unload_busy(const Options& options, Report& report) {
  constexpr int callers = 8;
  std::atomic<bool> stop{false};
  std::atomic<int> running{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < callers; ++i) {
    threads.emplace_back([&] {
      Request request;
      int sum = 0;
      running.fetch_add(1, std::memory_order_release);
      while (!stop.load(std::memory_order_relaxed)) sum += call_deep(&request, 20);
      keep(sum);
    });
  }
  while (running.load(std::memory_order_acquire) < callers) sched_yield();
  std::vector<double> whole;
  for (int i = 0; i < (options.quick ? 5 : 25); ++i) {
    load("bench_small");
    const timespec among_them{0, 2'000'000};
    nanosleep(&among_them, nullptr);
    std::int64_t from = now_ns();
    unload("bench_small");
    whole.push_back(us(now_ns() - from));
  }
  stop.store(true, std::memory_order_relaxed);
  for (auto& thread : threads) thread.join();
  report.add({"module.unload_busy", median(whole), "us", "", 0, 0, Goal::info()});
}

// Two threads run through the hook without pause while its one module is taken out of force and put
// back: what a change costs the one who makes it.
void disable(const Options& options, Report& report) {
  load("bench_small");
  std::atomic<bool> stop{false};
  std::atomic<int> running{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      Request request;
      int sum = busy(&request);
      running.fetch_add(1, std::memory_order_release);
      while (!stop.load(std::memory_order_relaxed)) {
        for (int k = 0; k < 1000; ++k) sum += busy(&request);
      }
      keep(sum);
    });
  }
  while (running.load(std::memory_order_acquire) < 2) sched_yield();
  std::vector<double> disabled, enabled;
  int error = 0;
  for (int i = 0; i < (options.quick ? 100 : 1000) && error == 0; ++i) {
    std::int64_t from = now_ns();
    error |= molt_disable("bench_small");
    std::int64_t between = now_ns();
    error |= molt_enable("bench_small");
    std::int64_t to = now_ns();
    disabled.push_back(us(between - from));
    enabled.push_back(us(to - between));
  }
  stop.store(true, std::memory_order_relaxed);
  for (auto& thread : threads) thread.join();
  unload("bench_small");
  if (error != 0) throw std::runtime_error("a module could not be disabled or enabled");
  report.add({"hook.disable", median(disabled), "us", "", 0, 0, Goal::info()});
  report.add({"hook.enable", median(enabled), "us", "", 0, 0, Goal::info()});
}

}  // namespace

std::vector<Bench> change_benches() {
  return {
      {"hook.disable", "molt_disable() and molt_enable() under two busy threads", disable},
      {"module.unload_busy", "unloading under eight threads that never sleep", unload_busy},
      {"module.unload_other_sleeps", "unloading B while a thread sleeps in A", unload_other_sleeps},
  };
}

}  // namespace bench
