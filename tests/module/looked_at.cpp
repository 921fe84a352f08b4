// looked_at.cpp - threads ask without a pause who is inside a module (`molt blocking`) which another
// loads and unloads: neither may meet the other half-way, and no unload leaves the module in memory because of
// looks that overlap each other. Built over a runtime that stops in the middle of
// a look and sees for itself whether the module stayed (base/torture_step.hpp).
#include <atomic>
#include <cstdio>
#include <molt/host.hpp>
#include <thread>
#include <vector>

#include "module/manager.hpp"
#include "visitor.hpp"

static molt::hook<visitor_point> on_visitor;

int main(int, char** argv) {
  constexpr int cycles = 40;
  std::atomic<bool> stop{false};
  std::atomic<int> looks{0};
  std::vector<std::thread> lookers(3);
  for (std::thread& looker : lookers) {
    looker = std::thread([&] {
      while (!stop.load(std::memory_order_relaxed)) {
        if (molt::module::blocking("visited")) ++looks;
      }
    });
  }
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
    } else if (!molt::module::is_gone(unloaded->fate)) {
      std::printf("cycle %d: %s\n", i, unloaded->reason.c_str());
      ++failed;
    }
  }
  stop.store(true, std::memory_order_relaxed);
  for (std::thread& looker : lookers) looker.join();
  std::printf("%d looks at a module that came and went %d times\n", looks.load(), cycles);
  return failed != 0 || looks < cycles / 4 ? 1 : 0;
}
