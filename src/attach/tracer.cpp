#include "attach/tracer.hpp"

#include "attach/target.hpp"

#include <elf.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <string>

namespace molt::attach {

namespace {

constexpr double longest_us = 10e6;

constexpr const char* tracer_name = "molt-tracer";

// In the tracing process: whose it is.
pid_t g_asked_by = 0;

enum class Waited { stopped, ended, running };

// For the next stop of a traced thread. The kernel tells of it by SIGCHLD, which this process blocks.
Waited wait_for_stop(pid_t tid, int& status, double begin_us, double patience_us) {
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  for (;;) {
    const pid_t got = waitpid(tid, &status, __WALL | WNOHANG);
    if (got > 0) return WIFSTOPPED(status) ? Waited::stopped : Waited::ended;
    if (got < 0 && errno != EINTR) return Waited::ended;
    const double left_us = begin_us + patience_us - now_us();
    if (left_us <= 0) return Waited::running;
    const auto ns = static_cast<long>(std::min(left_us, longest_us)) * 1000;
    const timespec left{ns / 1'000'000'000, ns % 1'000'000'000};
    sigtimedwait(&child, nullptr, &left);
  }
}

// Of one that has just ended the kernel says the same as of one that may not be traced.
bool is_ending(pid_t tid) {
  const std::string stat = read_text("/proc/" + std::to_string(tid) + "/stat");
  const std::size_t name_end = stat.rfind(')');
  if (name_end == stat.npos || name_end + 2 >= stat.size()) return true;
  const char state = stat[name_end + 2];
  return state == 'Z' || state == 'X';
}

}  // namespace

double now_us() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) / 1e3;
}

bool in_tracing_process(const std::function<void()>& work) {
  const pid_t asking = getpid();
  const pid_t child = fork();
  if (child == 0) {
    g_asked_by = asking;
    setsid();
    prctl(PR_SET_NAME, tracer_name);
    signal(SIGCHLD, SIG_DFL);  // its handlers are its own
    sigset_t child_signal;
    sigemptyset(&child_signal);
    sigaddset(&child_signal, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child_signal, nullptr);
    // Nobody comes between while a victim is stopped, where that may be asked for.
    const sched_param first{1};
    sched_setscheduler(0, SCHED_FIFO, &first);
    work();
    _exit(0);
  }
  int status = 0;
  bool has_ended = child > 0;
  while (has_ended && waitpid(child, &status, 0) < 0) has_ended = errno == EINTR;
  return has_ended && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

SharedBytes::SharedBytes(std::size_t bytes) : bytes_(bytes) {
  void* const at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  at_ = at == MAP_FAILED ? nullptr : at;
}

SharedBytes::~SharedBytes() {
  if (at_ != nullptr) munmap(at_, bytes_);
}

bool nobody_waits() { return getppid() != g_asked_by; }

pid_t foreign_tracer(pid_t id) {
  const std::string status = read_text("/proc/" + std::to_string(id) + "/status");
  const std::string key = "\nTracerPid:";
  const std::size_t at = status.find(key);
  const int tracer = at == status.npos ? 0 : std::atoi(status.c_str() + at + key.size());
  if (tracer == 0) return 0;
  const std::string name = read_text("/proc/" + std::to_string(tracer) + "/comm");
  return name.empty() || name == std::string(tracer_name) + "\n" ? 0 : tracer;
}

Status Tracer::seize() {
  constexpr int tries = 20;
  for (int i = 1;; ++i) {
    if (ptrace(PTRACE_SEIZE, tid_, 0, PTRACE_O_TRACESYSGOOD) == 0) {
      seized_ = true;
      return {};
    }
    const int code = errno;
    if (code == ESRCH || (code == EPERM && is_ending(tid_))) {
      return fail(EAGAIN, "thread %d has ended", tid_);
    }
    // Where another of its kind traces the thread the kernel says the same as where nobody may.
    if (code != EPERM || i == tries || foreign_tracer(tid_) != 0) {
      return fail_errno(code, "thread %d cannot be traced", tid_);
    }
    const timespec moment{0, 500'000};
    nanosleep(&moment, nullptr);
  }
}

Result<bool> Tracer::stop() {
  if (ptrace(PTRACE_INTERRUPT, tid_, 0, 0) != 0) return false;
  int status = 0;
  switch (wait_for_stop(tid_, status, now_us(), longest_us)) {
    case Waited::running:
      // The end of the thread that traces lets go of what it could not stop.
      return fail(EAGAIN, "thread %d does not stop", tid_);
    case Waited::ended:
      seized_ = false;
      return false;
    case Waited::stopped:
      break;
  }
  stopped_ = true;
  if (status >> 16 == PTRACE_EVENT_STOP && WSTOPSIG(status) == SIGTRAP) return true;
  // A signal on its way, or a job-control stop: it gets what it was to get.
  const int signal = status >> 16 == 0 ? WSTOPSIG(status) : 0;
  ptrace(PTRACE_DETACH, tid_, 0, signal);
  seized_ = false;
  return false;
}

bool Tracer::run_to_call(double patience_us) {
  int signal = 0;
  for (const double begin = now_us(); now_us() - begin < patience_us;) {
    if (stopped_) {
      if (ptrace(PTRACE_SYSCALL, tid_, 0, signal) != 0) return false;
      stopped_ = false;
      signal = 0;
    }
    int status = 0;
    switch (wait_for_stop(tid_, status, begin, patience_us)) {
      case Waited::running:
        return false;
      case Waited::ended:
        seized_ = false;
        return false;
      case Waited::stopped:
        break;
    }
    stopped_ = true;
    if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
      __ptrace_syscall_info info = {};
      if (ptrace(PTRACE_GET_SYSCALL_INFO, tid_, sizeof info, &info) > 0 &&
          info.op == PTRACE_SYSCALL_INFO_ENTRY) {
        return true;
      }
    } else if (status >> 16 == 0) {
      signal = WSTOPSIG(status);
    }
  }
  return false;
}

bool Tracer::get(user_regs_struct& registers) const {
  return ptrace(PTRACE_GETREGS, tid_, 0, &registers) == 0;
}

bool Tracer::set(const user_regs_struct& registers) const {
  return ptrace(PTRACE_SETREGS, tid_, 0, &registers) == 0;
}

bool Tracer::get_rest(Stopped& stopped) const {
  iovec vectors{stopped.vectors.data(), stopped.vectors.size()};
  if (ptrace(PTRACE_GETREGSET, tid_, NT_X86_XSTATE, &vectors) != 0) return false;
  stopped.vector_bytes = vectors.iov_len;
  return get_mask(stopped.signal_mask);
}

bool Tracer::get_mask(std::uint64_t& mask) const {
  return ptrace(PTRACE_GETSIGMASK, tid_, sizeof mask, &mask) == 0;
}

bool Tracer::set_mask(std::uint64_t mask) const {
  return ptrace(PTRACE_SETSIGMASK, tid_, sizeof mask, &mask) == 0;
}

void Tracer::let_go() {
  if (seized_ && stopped_) ptrace(PTRACE_DETACH, tid_, 0, 0);
  seized_ = false;
}

bool Tracer::rewind(user_regs_struct& r) const {
  r.rip -= 2;
  r.rax = r.orig_rax;
  r.orig_rax = ~0ull;
  return set(r);
}

// The call was interrupted, and did nothing: it may be made again.
bool is_interrupted(const user_regs_struct& r) {
  const auto result = static_cast<long>(r.rax);
  return result == -EINTR || (result <= -512 && result >= -516);
}

}  // namespace molt::attach
