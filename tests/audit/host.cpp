// A process that takes modules and does nothing else, until its stdin ends.
#include <molt/molt.h>
#include <unistd.h>

#include <cstdio>

int main() {
  if (molt_start(nullptr) != 0) {
    std::fprintf(stderr, "%s\n", molt_last_error());
    return 1;
  }
  std::puts("ready");
  std::fflush(stdout);
  char byte;
  while (read(0, &byte, 1) > 0) {
  }
  _exit(0);
}
