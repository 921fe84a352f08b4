#include "audit/kernel.hpp"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>

#include "base/own_fd.hpp"

namespace molt::audit {
namespace {

std::string signal_name(int number) {
  const char* name = sigabbrev_np(number);
  return name != nullptr ? std::string("SIG") + name : "signal " + std::to_string(number);
}

// The call itself: glibc's wrapper hides two signals that it keeps for itself.
void add_signals(std::vector<KernelWord>& words) {
  struct KernelAction {
    std::uint64_t handler, flags, restorer, mask;
  };
  for (int number = 1; number <= 64; ++number) {
    KernelAction action{};
    if (syscall(SYS_rt_sigaction, number, nullptr, &action, sizeof action.mask) != 0) continue;
    words.push_back({true, number, action.handler, "handler of " + signal_name(number)});
    words.push_back({true, number, action.restorer, "restorer of " + signal_name(number)});
  }
}

// "ID: 0\nsignal: 14/00007ffd...\nnotify: signal/pid.1\nClockID: 1\n", where the kernel has it.
void add_timers(std::vector<KernelWord>& words) {
  const OwnFd fd = own_open("/proc/self/timers", O_RDONLY);
  if (!fd) return;
  char text[4096];
  std::string line;
  int id = 0;
  for (ssize_t n; (n = read(fd.get(), text, sizeof text)) > 0;) {
    for (ssize_t i = 0; i < n; ++i) {
      if (text[i] != '\n') {
        line += text[i];
        continue;
      }
      int number;
      unsigned long long value;
      if (std::sscanf(line.c_str(), "ID: %d", &number) == 1) {
        id = number;
      } else if (std::sscanf(line.c_str(), "signal: %d/%llx", &number, &value) == 2) {
        words.push_back({false, id, value,
                         "value of POSIX timer " + std::to_string(id) + ", which sends " +
                             signal_name(number)});
      }
      line.clear();
    }
  }
}

}  // namespace

std::vector<KernelWord> kernel_words() {
  std::vector<KernelWord> words;
  words.reserve(160);
  add_signals(words);
  add_timers(words);
  return words;
}

}  // namespace molt::audit
