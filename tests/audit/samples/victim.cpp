// What pointers are planted to: functions, a vtable, data; and what a library registers for itself.
#include <pthread.h>
#include <semaphore.h>
#include <time.h>

#include <cstdlib>

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void on_timer() { asm volatile(""); }
EXPORTED void on_signal(int) { asm volatile(""); }
EXPORTED void on_value(void*) { asm volatile(""); }
EXPORTED int table_of_numbers[64];
EXPORTED char wide_table[128 * 1024];
int table_of_numbers[64] = {1};
char wide_table[128 * 1024];

// Calls back: what is on the stack then is a return address in the middle of this function.
EXPORTED int call_out(void (*f)(void*), void* argument) {
  f(argument);
  return table_of_numbers[0];
}

EXPORTED void* thread_main(void* gates) {
  auto* gate = static_cast<sem_t*>(gates);
  sem_post(gate + 1);
  sem_wait(gate);
  return nullptr;
}

struct Shape {
  virtual ~Shape() = default;
  virtual int corners() { return 3; }
};
EXPORTED Shape* new_shape() { return new Shape; }

// All of this goes with dlclose().
struct Registered {
  Registered() {
    std::atexit(on_timer);
    pthread_atfork(on_timer, on_timer, on_timer);
  }
  ~Registered() { table_of_numbers[1] = 2; }
} registered;
