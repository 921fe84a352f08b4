#include "control/thread.hpp"

#include <signal.h>
#include <sys/prctl.h>

#include <cerrno>
#include <memory>

#include "base/own_memory.hpp"

namespace molt::control {
namespace {

struct Start {
  const char* name;
  void* (*run)(void*);
  void* argument;
};

void* begin(void* given) {
  std::unique_ptr<Start> start(static_cast<Start*>(given));
  prctl(PR_SET_NAME, start->name);
  void* (*run)(void*) = start->run;
  void* argument = start->argument;
  start.reset();
  note_own_thread(true);
  void* result = run(argument);
  note_own_thread(false);
  return result;
}

}  // namespace

Result<pthread_t> start_thread(const char* name, std::size_t stack_bytes, void* (*run)(void*),
                               void* argument) {
  auto start = std::make_unique<Start>(Start{name, run, argument});
  // A thread inherits the mask. The ones that libc needs for itself stay open whatever is asked.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);

  pthread_t thread{};
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  if (stack_bytes != default_stack) pthread_attr_setstacksize(&attributes, stack_bytes);
  int code = pthread_create(&thread, &attributes, begin, start.get());
  if (code == EINVAL) code = pthread_create(&thread, nullptr, begin, start.get());
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);

  if (code != 0) return fail_errno(code, "cannot start a thread");
  static_cast<void>(start.release());  // the thread's own now
  return thread;
}

}  // namespace molt::control
