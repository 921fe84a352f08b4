// everything_wrong - all that keeps a module from being unloaded, each in a few lines.
//
//     molt check everything_wrong.so              what can be seen in the file
//     molt load -p PID everything_wrong.so
//     molt audit -p PID everything_wrong          who points into it
//     molt unload -p PID everything_wrong         it stays resident, and why
//
// exit() takes none of it back. Unmapped all the same, this module would bring the program down: at
// the timer's next tick, at the next SIGUSR2, at the next exception that nobody catches, or as soon as
// its thread wakes up. So its memory stays, and each reason has a name.

#include <molt/module.hpp>

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <exception>
#include <regex>
#include <string>
#include <thread>

namespace {

// A thread that nobody waits for.
void start_thread() {
  std::thread([] {
    for (;;) pause();
  }).detach();
}

// A callback that the host's C++ library keeps: called whenever the program terminates.
[[noreturn]] void on_terminate() { _exit(1); }
void register_callback() { std::set_terminate(on_terminate); }

// A handler that only the kernel knows.
void on_signal(int) {}
void install_handler() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigaction(SIGUSR2, &action, nullptr);
}

// A timer that calls a function, ten times a second.
void on_timer(sigval) {}
void start_timer() {
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD;
  event.sigev_notify_function = on_timer;
  timer_t timer;
  if (timer_create(CLOCK_MONOTONIC, &event, &timer) != 0) return;
  itimerspec every{};
  every.it_value.tv_nsec = every.it_interval.tv_nsec = 100'000'000;
  timer_settime(timer, 0, &every, nullptr);
}

// A destructor that runs when the thread ends which loaded the module.
thread_local std::string remembered;

// Unique symbols: the dynamic loader never unloads who defines one that is in use.
bool matches(const std::string& text) { return std::regex_match(text, std::regex("a+b")); }

int start() {
  remembered = "a text that is too long to be stored in the string itself";
  start_thread();
  register_callback();
  install_handler();
  start_timer();
  return matches("aab") ? 0 : -EINVAL;
}

void finish() {}  // and takes nothing back

}  // namespace

MOLT_MODULE("everything_wrong", "1.0", "Apache-2.0", "does everything wrong, to be found out")
MOLT_INIT(start)
MOLT_EXIT(finish)
