#include "victim.hpp"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>

extern "C" {
long victim_add(long a, long b) { return a * 3 + b; }
double victim_mean(double a, double b) { return (a + b) / 2; }
int victim_open(const char* path, int flags) {
  errno = 77;
  return path != nullptr ? flags : -1;
}
long victim_many(long a, long b, long c, long d, long e, long f, long g, long h, double i) {
  return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + static_cast<long>(9 * i);
}
int victim_sum(int count, ...) {
  va_list list;
  va_start(list, count);
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += va_arg(list, double);
  va_end(list);
  return static_cast<int>(sum);
}
int victim_throws(int what) {
  if (what > 0) throw what;
  return what;
}
int victim_sleeps(std::atomic<unsigned>* word) {
  while (word->load() == 0) syscall(SYS_futex, word, FUTEX_WAIT, 0, nullptr, nullptr, 0);
  return static_cast<int>(word->load());
}
int victim_spins(int rounds) {
  volatile int n = 0;
  for (int i = 0; i < rounds; ++i) n = n + 1;
  return n;
}
long victim_inner() { return 1; }
long victim_outer() {
  const long first = victim_inner();
  victim_spins(100);
  const long second = victim_inner();
  asm volatile("");
  return first == 1 && second == 1 ? 1 : -1;
}
}
