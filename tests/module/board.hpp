// board.hpp - where the modules under test and their test meet. A test puts there what a module is
// to do in its functions; the modules come from a few sources, built under several names.
#pragma once

#include <molt/molt.h>

#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

struct Board {
  // What init and the others do and answer, whichever module calls; empty: nothing, and 0.
  std::function<int(molt_module*)> init;
  std::function<void(molt_module*)> exit;
  std::function<int(molt_module*, int)> call;
  std::function<int(molt_module*)> save;
  std::function<int(molt_module*)> restore;

  std::atomic<int> inits{0}, exits{0}, calls{0}, saves{0}, restores{0};

  void tell(const std::string& line) {
    std::lock_guard lock(mutex);
    told.push_back(line);
  }
  std::vector<std::string> all_told() {
    std::lock_guard lock(mutex);
    return told;
  }

  std::mutex mutex;
  std::vector<std::string> told;
};

// One for the whole process: it lies in a library of its own.
__attribute__((visibility("default"))) Board& board();
