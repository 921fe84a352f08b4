// board.hpp - where the callbacks under test and their test meet: every callback of every module asks
// the board what to do and what to answer.
#pragma once

#include <functional>

struct Call {
  const char* module;
  int version;
  const char* point;
  int argument;
  int epoch;  // the module's parameter
};

struct Board {
  // Empty: nothing is done, and the answer is the argument. Set it while nobody calls.
  std::function<int(const Call&)> call;
};

// One for the whole process: it lies in a library of its own.
__attribute__((visibility("default"))) Board& board();
