// A program as a user would write it: it answers "N" on stdin with what its hook says. "keep N" makes a
// thread that sleeps with the complement of N in a frame, "drop" ends it.
#include <molt/host.hpp>

#include <atomic>
#include <cstdint>
#include <iostream>
#include <string>
#include <thread>

#include "points.hpp"

static molt::hook<ask_point> on_ask;

static std::atomic<bool> kept{false};

static void keep(std::uintptr_t complement) {
  [[maybe_unused]] volatile std::uintptr_t word = ~complement;
  kept.store(true, std::memory_order_release);
  kept.notify_all();
  kept.wait(true, std::memory_order_acquire);
  word = 0;
}

int main() {
  if (molt::start("user-host") != 0) {
    std::cerr << molt_last_error() << '\n';
    return 1;
  }
  std::cout << "ready" << std::endl;
  std::thread keeper;
  for (std::string word; std::cin >> word;) {
    if (word == "keep") {
      std::uintptr_t complement;
      std::cin >> complement;
      keeper = std::thread(keep, complement);
      kept.wait(false, std::memory_order_acquire);
    } else if (word == "drop") {
      kept.store(false, std::memory_order_release);
      kept.notify_all();
      keeper.join();
    }
    const bool is_number = word != "keep" && word != "drop";
    std::cout << (is_number ? on_ask(std::stoi(word)) : 0) << std::endl;
  }
}
