#include "threads/own_thread.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "base/own_memory.hpp"
#include "base/sanitizer.hpp"

namespace molt::threads {
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
#ifndef MOLT_MUTATE_OLD_STACK
  // A thread of the host may have had this stack, and was in anything.
  clean_stack_below();
#endif
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
  // A blocked fault kills; and SIGTRAP is how code is changed under threads (arch/x86_64/trap.hpp).
  for (int fault : {SIGTRAP, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS}) sigdelset(&all, fault);
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

std::size_t start_routine_offset() {
  constexpr std::size_t most_words = 256;  // glibc's struct pthread has 288, the routine is at 199
  const auto* descriptor = static_cast<const volatile std::uintptr_t*>(__builtin_thread_pointer());
  for (std::size_t i = 0; i < most_words; ++i) {
    if (descriptor[i] == reinterpret_cast<std::uintptr_t>(&begin)) return i * sizeof *descriptor;
  }
  return 0;
}

// Pages that were never used are read only, which takes no memory: hundreds of threads may come here. Up to
// the caller's frame: a sanitizer would put something between.
[[gnu::noinline]] __attribute__((no_sanitize("address"))) void clean_stack_below() {
  std::uintptr_t below[16 * 1024 / sizeof(std::uintptr_t)];
  asm volatile("" : "=m"(below));  // whatever is there
  volatile std::uintptr_t* const words = below;
  for (std::size_t i = 0; i < std::size(below); ++i) {
    if (words[i] != 0) words[i] = 0;
  }
}

Status leave_descriptor_table() {
  // Without its stderr a sanitizer would end the process and not say why.
  const unsigned first = under_sanitizer() ? STDERR_FILENO + 1 : 0;
  if (syscall(SYS_close_range, first, ~0u, CLOSE_RANGE_UNSHARE) == 0) {
    if (first != 0) syscall(SYS_close_range, 0u, static_cast<unsigned>(STDOUT_FILENO), 0u);
    return {};
  }
  if (unshare(CLONE_FILES) != 0) {
    return fail_errno(errno, "the system does not let a thread have its own descriptors");
  }
  DIR* listing = opendir("/proc/thread-self/fd");
  if (listing == nullptr) return fail_errno(errno, "cannot list the process's descriptors");
  while (const dirent* entry = readdir(listing)) {
    const int fd = atoi(entry->d_name);
    if (entry->d_name[0] != '.' && fd != dirfd(listing)) close(fd);
  }
  closedir(listing);
  return {};
}

// What some library believes to be stdin, stdout and stderr is nothing of ours.
Status occupy_standard_descriptors() {
  for (;;) {
    const int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (fd > STDERR_FILENO) return close(fd), Status();
    if (fd < 0 && eventfd(0, EFD_CLOEXEC) < 0) return fail_errno(errno, "no descriptors");
    if (fd < 0 && fcntl(STDERR_FILENO, F_GETFD) >= 0) return {};
  }
}

}  // namespace molt::threads
