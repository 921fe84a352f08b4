// What the tests of C++ patch: the program's own versions answer 1.
#pragma once

#include <atomic>
#include <csetjmp>
#include <cstdint>
#include <stdexcept>
#include <string>

#define CX __attribute__((noipa, used, visibility("default")))

// Thrown by one version and caught by another: one type, the program's.
struct __attribute__((visibility("default"))) CxError : std::runtime_error {
  explicit CxError(int version)
      : std::runtime_error("version " + std::to_string(version)), number(version) {}
  ~CxError() override;
  int number;
};

// Throws its version, with an object alive on its frame.
CX int cx_throws(int* destroyed);
// Calls cx_throws(), and answers what it caught, times ten, plus its own version.
CX int cx_catches(int* destroyed);

struct __attribute__((visibility("default"))) CxShape {
  CX CxShape();
  virtual ~CxShape();
  CX virtual int area();
  int made_by = 0;  // the version of the constructor
};

template <class T>
CX T cx_twice(T value) {
  asm volatile("" ::: "memory");
  return value + value;
}
extern template int cx_twice<int>(int);

// New code counts, in a static local with a guard, and in a thread_local with a destructor.
CX int cx_counts();
// The depth at which recursion ends, times ten, plus the version; waits at the bottom if held.
CX int cx_recurses(int depth);
// Leaves by longjmp with its version.
CX void cx_jumps(std::jmp_buf* to);
CX int cx_version();
