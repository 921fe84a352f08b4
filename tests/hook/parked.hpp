// parked.hpp - where coroutines of modules wait until a test resumes them.
#pragma once

#include <coroutine>
#include <semaphore>
#include <vector>

class Parked {
 public:
  void told(int number) { numbers.push_back(number); }

  // Awaiting it suspends the coroutine until somebody resumes `handle`.
  struct Awaiter {
    Parked* at;
    bool await_ready() const { return false; }
    void await_suspend(std::coroutine_handle<> who) const {
      at->handle = who;
      at->there.release();
    }
    void await_resume() const {}
  };
  Awaiter park() { return {this}; }

  std::coroutine_handle<> handle;  // valid once `there` was acquired
  std::counting_semaphore<> there{0};
  std::vector<int> numbers;
};

// One for the whole process.
__attribute__((visibility("default"))) Parked& parked();
