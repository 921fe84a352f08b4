// A process that takes modules and does nothing else, until its stdin ends.
#include <molt/molt.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

int main() {
  if (molt_start(nullptr) != 0) {
    std::fprintf(stderr, "%s\n", molt_last_error());
    return 1;
  }
  std::puts("ready");
  std::fflush(stdout);
  char byte;
  // A module's signal handler may interrupt it.
  for (ssize_t n = 1; n > 0 || (n < 0 && errno == EINTR);) n = read(0, &byte, 1);
  _exit(0);
}
