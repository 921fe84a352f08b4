/* shy: ends as soon as another thread in it wants memory: in the middle of any attach. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <unistd.h>

void* __libc_malloc(size_t bytes);

/* The C library's and the runtime's too. */
__attribute__((visibility("default"))) void* malloc(size_t bytes) {
  if (gettid() != getpid()) _exit(7);
  return __libc_malloc(bytes);
}

int main(void) {
  char c;
  if (write(1, "ready\n", 6) != 6) return 1;
  return read(0, &c, 1) == 0 ? 0 : 1;
}
