// The other versions of what the program hazards does all the time.
#include <molt/livepatch.hpp>

#include <dlfcn.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>

#include "../targets/hazards.hpp"

extern "C" {
static long new_recursion(int depth) {
  const long below = depth > 0 ? hz_recursion(depth - 1) : 2;
  asm volatile("");
  return below == 2 ? 2 : -2;
}
static long new_blocked(int fd) {
  char c = 0;
  const bool good = read(fd, &c, 1) == 1 && c == 'x';
  asm volatile("");
  return good ? 2 : -2;
}
static long new_red_zone(long seed) {
  volatile long below[14];
  for (long i = 0; i < 14; ++i) below[i] = seed - i;
  long sum = 0;
  for (long i = 0; i < 14; ++i) sum += below[i];
  return sum == 14 * seed - 91 ? 2 : -2;
}
static long new_throws() { throw 2; }
static long new_cancelled() {
  pthread_testcancel();
  asm volatile("");
  return 2;
}
static long new_thread_local() {
  const long first = hz_count();
  asm volatile("");
  return hz_count() == first + 1 ? 2 : -2;
}
static long new_loader() {
  return dlsym(RTLD_DEFAULT, "hz_count") == reinterpret_cast<void*>(hz_count) ? 2 : -2;
}
static long new_allocates() {
  void* volatile some = std::malloc(static_cast<std::size_t>(1000 + hz_count() % 100000));
  std::free(some);
  return some != nullptr ? 2 : -2;
}
static long new_timed() {
  const timespec moment{0, 300'000};
  // tidy: sleep-ok whether it is interrupted is the question
  return nanosleep(&moment, nullptr) == 0 ? 2 : -2;
}
static long new_page() { return 2; }
static long new_dozen() { return 2; }
static long new_hundred() { return 2; }
static long new_contract() {
  const long first = hz_dozen();
  const timespec moment{0, 100'000};
  nanosleep(&moment, nullptr);  // tidy: sleep-ok so that patches go in the middle
  const long second = hz_hundred();
  const long third = hz_dozen();
  return first == 2 && second == 2 && third == 2 ? 2 : -2;
}
}

MOLT_MODULE("hazards_patch", "1", "Apache-2.0", "does the same another way")
MOLT_PATCH(
    MOLT_PROGRAM(MOLT_REPLACE("hz_recursion", new_recursion),
                 MOLT_REPLACE("hz_blocked", new_blocked), MOLT_REPLACE("hz_red_zone", new_red_zone),
                 MOLT_REPLACE("hz_throws", new_throws), MOLT_REPLACE("hz_cancelled", new_cancelled),
                 MOLT_REPLACE("hz_thread_local", new_thread_local),
                 MOLT_REPLACE("hz_loader", new_loader), MOLT_REPLACE("hz_allocates", new_allocates),
                 MOLT_REPLACE("hz_timed", new_timed), MOLT_REPLACE("hz_page", new_page),
                 MOLT_REPLACE("hz_contract", new_contract)),
    MOLT_OBJECT("libhz_dozen.so", MOLT_REPLACE("hz_dozen", new_dozen)),
    MOLT_OBJECT("libhz_hundred.so", MOLT_REPLACE("hz_hundred", new_hundred)))
