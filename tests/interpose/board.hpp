// Where modules leave word, for the test to read.
#pragma once

#include <atomic>

struct Board {
  std::atomic<long> entries, returns, inside;
  std::atomic<long> last_a, last_b, last_result;
  std::atomic<double> last_float;
};
extern "C" Board interpose_board;
