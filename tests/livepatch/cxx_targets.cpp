#include "cxx_targets.hpp"

#include "targets.hpp"

CxError::~CxError() = default;

namespace {
struct Noted {
  int* destroyed;
  ~Noted() { ++*destroyed; }
};
}  // namespace

int cx_throws(int* destroyed) {
  Noted noted{destroyed};
  throw CxError(1);
}

int cx_catches(int* destroyed) {
  try {
    return cx_throws(destroyed);
  } catch (const CxError& error) {
    return error.number * 10 + 1;
  }
}

CxShape::CxShape() : made_by(1) { asm volatile("" ::: "memory"); }
CxShape::~CxShape() = default;
int CxShape::area() {
  asm volatile("" ::: "memory");
  return 1;
}

template int cx_twice<int>(int);

int cx_counts() {
  asm volatile("" ::: "memory");
  return 1;
}

int cx_recurses(int depth) {
  if (depth > 0) {
    const int below = cx_recurses(depth - 1);
    asm volatile("" ::: "memory");
    return below % 10 == 1 ? below : -1;
  }
  lp_wait_while_held();
  return 1;
}

void cx_jumps(std::jmp_buf* to) { std::longjmp(*to, 1); }

int cx_version() {
  asm volatile("" ::: "memory");
  return 1;
}
