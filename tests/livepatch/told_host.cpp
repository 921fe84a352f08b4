// A program that knows nothing of Molt: its threads go to sleep in a function, wake, and call as they are told.
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <thread>

#include "targets.hpp"

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  std::puts("ready");
  std::thread sleeper;
  int answer = 0;
  char command[32];
  while (std::fgets(command, sizeof command, stdin) != nullptr) {
    if (std::strcmp(command, "sleep\n") == 0) {
      lp_shared.hold = 1;
      sleeper = std::thread([&] { answer = lp_sleeper(); });
      // tidy: sleep-ok between two looks at what tells nobody
      while (lp_shared.inside == 0) usleep(1000);
      std::puts("asleep");
    } else if (std::strcmp(command, "wake\n") == 0) {
      lp_shared.hold = 0;
      syscall(SYS_futex, &lp_shared.hold, FUTEX_WAKE_PRIVATE, 100, nullptr, nullptr, 0);
      sleeper.join();
      std::printf("woken %d\n", answer);
    } else {
      std::printf("answer %d\n", lp_answer(0));
    }
  }
}
