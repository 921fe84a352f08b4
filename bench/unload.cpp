// Taking one module out while a thread sleeps 300 ms in another one on the same hook. A grace period
// has to wait for that thread; a record of who is where does not.

#include <urcu/urcu-memb.h>
#include <molt/host.hpp>

#include <atomic>
#include <thread>

#include "harness.hpp"
#include "points.hpp"

namespace {

molt::hook<SharedPoint> shared;

// A thread that is nearly always asleep in bench_sleeper's callback.
class Sleeper {
 public:
  explicit Sleeper(void (*sleep)())
      : thread_([this, sleep] {
          while (!stop_.load(std::memory_order_relaxed)) sleep();
        }) {}
  ~Sleeper() {
    stop_.store(true, std::memory_order_relaxed);
    thread_.join();
  }

 private:
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

bench::Registered unload("module.unload_other_sleeps", [] {
  bench::must_load("bench_sleeper");
  const int rounds = bench::options().quick ? 20 : 200;
  std::vector<double> detach, whole;
  {
    Sleeper sleeper([] { shared(1); });
    bench::pin(0);
    for (int i = 0; i < rounds; ++i) {
      bench::must_load("bench_leaver");
      std::int64_t from = bench::now_ns();
      // Out of force at all its hooks, and the barrier after which nobody can get in unseen: what
      // remains of an unload's waiting is to find its frames, which molt_unload() repeats.
      molt_disable("bench_leaver");
      std::int64_t detached = bench::now_ns();
      bench::must_unload("bench_leaver");
      std::int64_t gone = bench::now_ns();
      detach.push_back(static_cast<double>(detached - from) / 1000);
      whole.push_back(static_cast<double>(gone - from) / 1000);
    }
  }
  bench::must_unload("bench_sleeper");

  std::vector<double> grace;
  {
    static thread_local bool registered = false;
    Sleeper reader([] {
      if (!registered) urcu_memb_register_thread();
      registered = true;
      urcu_memb_read_lock();
      timespec nap{0, 300'000'000};
      nanosleep(&nap, nullptr);
      urcu_memb_read_unlock();
    });
    for (int i = 0; i < 5; ++i) {
      std::int64_t from = bench::now_ns();
      urcu_memb_synchronize_rcu();
      grace.push_back(static_cast<double>(bench::now_ns() - from) / 1000);
    }
  }
  double us = bench::median(detach);
  bench::report({"module.unload_other_sleeps", us, "us", "liburcu synchronize_rcu",
                 bench::median(grace), us, "<= 10"});
  bench::report(
      {"module.unload_whole", bench::median(whole), "us", "", 0, bench::median(whole), "info"});
});

}  // namespace
