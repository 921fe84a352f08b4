// A program that knows nothing of Molt: it loads, calls and unloads a library as it is told.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "plugin.hpp"

void lp_note(const char* what, int value) { std::printf("%s %d\n", what, value); }
void lp_plugin_wait() {}
extern "C" __attribute__((visibility("default"))) void lp_wait_while_held() {}

int main(int, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  std::puts("ready");
  void* handle = nullptr;
  char command[32];
  while (std::fgets(command, sizeof command, stdin) != nullptr) {
    if (std::strcmp(command, "open\n") == 0) handle = dlopen(argv[1], RTLD_NOW);
    if (std::strcmp(command, "close\n") == 0) dlclose(handle);
    if (std::strcmp(command, "call\n") == 0) {
      auto* answer = reinterpret_cast<int (*)()>(dlsym(handle, "lp_plugin_answer"));
      std::printf("answer %d\n", answer());
    }
    std::puts("done");
  }
}
