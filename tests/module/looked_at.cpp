// looked_at.cpp - one thread asks without a pause who is inside a module (`molt blocking`) which another
// loads and unloads: neither may meet the other half-way. Built over a runtime that stops in the middle of
// a look and sees for itself whether the module stayed (base/torture_step.hpp).
#include <time.h>

#include <atomic>
#include <cstdio>
#include <molt/host.hpp>
#include <thread>

#include "module/manager.hpp"
#include "visitor.hpp"

static molt::hook<visitor_point> on_visitor;

int main(int, char** argv) {
  constexpr int cycles = 200;
  std::atomic<bool> stop{false};
  int looks = 0;
  std::thread looker([&] {
    while (!stop.load(std::memory_order_relaxed)) {
      looks += molt::module::blocking("visited") ? 1 : 0;
      const timespec moment{0, 100'000};
      nanosleep(&moment, nullptr);  // tidy: sleep-ok a gap between looks, for an unload to begin in
    }
  });
  int failed = 0;
  for (int i = 0; i < cycles && failed == 0; ++i) {
    molt::module::LoadRequest load;
    load.path = argv[1];
    const auto loaded = molt::module::load(load);
    // Used, so that it has somebody who owns its callbacks.
    delete static_cast<long*>(on_visitor(Wish::block));
    molt::module::UnloadRequest unload;
    unload.name = "visited";
    const auto unloaded = molt::module::unload(unload);
    if (!loaded || !unloaded) {
      std::printf("cycle %d: %s\n", i, (loaded ? unloaded.error() : loaded.error()).detail);
      ++failed;
    }
  }
  stop.store(true, std::memory_order_relaxed);
  looker.join();
  std::printf("%d looks at a module that came and went %d times\n", looks, cycles);
  return failed != 0 || looks < cycles / 4 ? 1 : 0;
}
