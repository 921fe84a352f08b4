// count_opens - counts the files that a program opens, and those that it could not.
//
//     molt load -p PID count_opens.so
//     molt get  -p PID modules/count_opens/parameters/opened

#include "opens.hpp"

#include <atomic>

MOLT_PARAM(unsigned long, opened, 0, "files opened since the module was loaded", 0)
MOLT_PARAM(unsigned long, failed, 0, "files that could not be opened", 0)

namespace {

std::atomic<unsigned long> counts[2];

void publish(std::atomic<unsigned long>& count, molt::param<unsigned long>& shown) {
  const std::string text = std::to_string(count.fetch_add(1, std::memory_order_relaxed) + 1);
  molt::param<unsigned long>::set(&shown, text.c_str());
}

void count(int result) {
  if (result >= 0) {
    publish(counts[0], opened);
  } else {
    publish(counts[1], failed);
  }
}

void count_open(molt::call<opens::open_file>& call) { count(call.result()); }
void count_below(molt::call<opens::open_below>& call) { count(call.result()); }

}  // namespace

MOLT_MODULE("count_opens", "1.0", "Apache-2.0", "counts the files that a program opens")
MOLT_AFTER(opens::open_file, count_open)
MOLT_AFTER(opens::open_below, count_below)
