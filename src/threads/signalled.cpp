#include "threads/signalled.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "threads/look.hpp"
#include "threads/start.hpp"

namespace molt::threads {
namespace {

enum State : std::uint32_t { idle, armed, taken, done };

struct Request {
  std::atomic<std::uint32_t> state{idle};
  std::atomic<int> tid{0};  // a late handler compares its own with the next request's
  std::atomic<unsigned> looks{0};
  const RangeSet* ranges = nullptr;
  Extent stack;
  // The answer.
  std::uintptr_t sp = 0;
  std::uintptr_t pc = 0;  // masked
  std::uintptr_t word = 0;
  std::uintptr_t at = 0;
  std::size_t hits = 0;
  bool in_code = false;
  bool on_own_stack = false;
};
constexpr std::size_t most_at_once = 64;
Request g_requests[most_at_once];
std::atomic<std::uint32_t> g_answers{0};
// At one tick of its clock each.
constexpr unsigned most_own_looks = 16;
int g_signal = 0;
bool g_rewinds = false;

// The kernel's clock number for one thread's CPU time: CPUCLOCK_SCHED, per thread.
clockid_t cpu_clock_of(int tid) {
  return static_cast<clockid_t>((~static_cast<unsigned>(tid)) << 3 | 4 | 2);
}

__attribute__((no_sanitize("address", "thread"))) void answer(Request& request,
                                                              const ucontext_t& context) {
  const auto& registers = context.uc_mcontext.gregs;
  request.sp = static_cast<std::uintptr_t>(registers[REG_RSP]);
  const auto pc = static_cast<std::uintptr_t>(registers[REG_RIP]);
  request.pc = pc ^ RangeSet::mask;
  const RangeSet& ranges = *request.ranges;
  request.hits = 0;
  request.word = request.at = 0;
  request.in_code = ranges.contains(pc);
  if (request.in_code) {
    request.hits = 1;
    request.word = request.pc;
  }
  constexpr int general[] = {REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
                             REG_RDI, REG_RSI, REG_RBP, REG_RBX, REG_RDX, REG_RAX, REG_RCX};
  for (const int r : general) {
    const auto value = static_cast<std::uintptr_t>(registers[r]);
    if (ranges.contains(value) && request.hits++ == 0) request.word = value ^ RangeSet::mask;
  }
  request.on_own_stack = request.stack.contains(request.sp);
  if (!request.on_own_stack) return;
  const std::uintptr_t from = (request.sp + 7) & ~std::uintptr_t{7};
  const auto* words = reinterpret_cast<const std::uint64_t*>(from);
  const std::size_t count = (request.stack.end - from) / 8;
  arch::Interval interval{ranges.masked_low() ^ RangeSet::mask, 0};
  interval.length = (ranges.masked_high() ^ RangeSet::mask) - interval.low;
  for (std::size_t i = 0; i < count; ++i) {
    i += arch::find_word(words + i, count - i, interval);
    if (i >= count) return;
    // A signal's frame: what it interrupted may be elsewhere. Said by being on no stack of its own.
    if (arch::is_signal_state(words + i, words[i])) request.on_own_stack = false;
    if (ranges.contains(words[i]) && request.hits++ == 0) {
      request.word = words[i] ^ RangeSet::mask;
      request.at = from + 8 * i;
    }
  }
}

void on_signal(int, siginfo_t*, void* given) {
  const int error = errno;
  auto& context = *static_cast<ucontext_t*>(given);
  if (g_rewinds) rewind_interrupted(context);
  const int self = gettid();
  for (Request& request : g_requests) {
    std::uint32_t expected = armed;
    if (request.tid.load(std::memory_order_relaxed) != self ||
        !request.state.compare_exchange_strong(expected, taken, std::memory_order_acquire,
                                               std::memory_order_relaxed)) {
      continue;
    }
    answer(request, context);
    const unsigned looks = request.looks.load(std::memory_order_relaxed) + 1;
    request.looks.store(looks, std::memory_order_relaxed);
    const bool is_out = request.hits == 0 && request.on_own_stack;
    request.state.store(is_out || looks == most_own_looks ? done : armed,
                        std::memory_order_release);
    g_answers.fetch_add(1, std::memory_order_release);
    futex_wake_all(g_answers);
    break;
  }
  errno = error;
}

// Linux before 5.10 sends CPU timers' signals from the clock interrupt itself.
bool interrupts_calls() {
  utsname system{};
  if (uname(&system) != 0) return true;
  int major = 0, minor = 0;
  if (std::sscanf(system.release, "%d.%d", &major, &minor) != 2) return true;
  return major < 5 || (major == 5 && minor < 10);
}

bool is_default(int signal) {
  struct sigaction action;
  return sigaction(signal, nullptr, &action) == 0 && !(action.sa_flags & SA_SIGINFO) &&
         action.sa_handler == SIG_DFL;
}

bool is_ours(int signal) {
  struct sigaction action;
  return sigaction(signal, nullptr, &action) == 0 && (action.sa_flags & SA_SIGINFO) &&
         action.sa_sigaction == on_signal;
}

// 0: none is free.
int take_signal() {
  if (g_signal != 0 && is_ours(g_signal)) return g_signal;
  g_rewinds = interrupts_calls();
  for (int signal = SIGRTMAX; signal >= SIGRTMIN; --signal) {
    if (!is_default(signal)) continue;
    struct sigaction action {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK;
    sigfillset(&action.sa_mask);
    // A blocked fault kills; and SIGTRAP is how code is changed under threads (arch/x86_64/trap.hpp).
    for (int fault : {SIGTRAP, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS}) {
      sigdelset(&action.sa_mask, fault);
    }
    if (sigaction(signal, &action, nullptr) != 0) continue;
    return g_signal = signal;
  }
  return 0;
}

// True as well if it cannot be told.
bool blocks(int tid, int signal) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
  const Fd fd(open(path, O_RDONLY | O_CLOEXEC));
  char text[4096];
  const ssize_t n = fd ? read(fd.get(), text, sizeof text - 1) : -1;
  if (n <= 0) return true;
  text[n] = '\0';
  const char* line = strstr(text, "\nSigBlk:\t");
  if (line == nullptr) return true;
  const std::uint64_t mask = strtoull(line + 9, nullptr, 16);
  return (mask >> (signal - 1)) & 1;
}

}  // namespace

bool rewind_interrupted(ucontext_t& context) {
  auto& registers = context.uc_mcontext.gregs;
  if (registers[REG_RAX] != -EINTR) return false;
  // mov $number, %eax; syscall
  struct [[gnu::packed]] Call {
    std::uint8_t mov;
    std::int32_t number;
    std::uint16_t syscall;
  } call;
  const auto next = static_cast<std::uintptr_t>(registers[REG_RIP]);
  if (!copy_memory(&call, next - sizeof call, sizeof call)) return false;
  if (call.mov != 0xb8 || call.syscall != 0x050f) return false;
  registers[REG_RIP] = static_cast<greg_t>(next - sizeof call.syscall);
  registers[REG_RAX] = call.number;
  return true;
}

namespace {

// Null: it is asked.
const char* ask(Request& request, Census& census, Thread& thread, const RangeSet& ranges,
                int& timer) {
  const int signal = take_signal();
  if (signal == 0) return "it runs, and no real-time signal is free";
  if (blocks(thread.tid, signal)) return "it runs, and blocks the signal that would make it look";
  census.find_stack(thread);
  request.tid.store(thread.tid, std::memory_order_relaxed);
  request.looks.store(0, std::memory_order_relaxed);
  request.ranges = &ranges;
  request.stack = thread.stack;
  request.state.store(armed, std::memory_order_release);

  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = signal;
  event._sigev_un._tid = thread.tid;
  if (::syscall(SYS_timer_create, cpu_clock_of(thread.tid), &event, &timer) != 0) {
    request.state.store(idle, std::memory_order_relaxed);
    return "it runs, and the system does not let us time it";
  }
  itimerspec when{};
  when.it_value.tv_nsec = when.it_interval.tv_nsec = 1;
  ::syscall(SYS_timer_settime, timer, 0, &when, nullptr);
  return nullptr;
}

// With the request withdrawn, or done.
void read_answer(const Request& request, Thread& thread, Finding& f) {
  f.sp = request.sp;
  f.pc = request.pc;
  saw_running(thread, f.pc ^ RangeSet::mask);
  f.hits = request.hits;
  if (f.hits > 0) {
    f.verdict = Verdict::inside;
    f.certain = request.in_code;
    f.word = request.word;
    f.at = request.at;
    f.depth = f.at ? f.at - f.sp : 0;
    f.reason = f.certain ? "it is in the code"
               : f.at    ? "an address on its stack"
                         : "an address in a register";
    return;
  }
  Scan(*request.ranges, f, f.sp).start_of(thread);
  if (f.verdict == Verdict::inside) return;
  if (!request.on_own_stack) {
    f.reason = "it runs on a stack that is not its own";
  } else if (!thread.has_begun) {
    f.reason = not_begun;
  } else {
    f.verdict = Verdict::out;
  }
}

void signal_some(Census& census, std::span<Thread* const> threads, const RangeSet& ranges,
                 const Deadline& deadline, Finding* findings) {
  int timers[most_at_once];
  const auto is_asked = [&](std::size_t i) { return *findings[i].reason == '\0'; };
  for (std::size_t i = 0; i < threads.size(); ++i) {
    Finding& f = findings[i];
    f = Finding{};
    f.tid = threads[i]->tid;
    f.activity = Activity::running;
    if (const char* why = ask(g_requests[i], census, *threads[i], ranges, timers[i]))
      f.reason = why;
  }
  const auto answers_missing = [&] {
    for (std::size_t i = 0; i < threads.size(); ++i) {
      if (is_asked(i) && g_requests[i].state.load(std::memory_order_acquire) != done) return true;
    }
    return false;
  };
  for (;;) {
    const std::uint32_t seen = g_answers.load(std::memory_order_acquire);
    if (!answers_missing() || deadline.passed()) break;
    futex_wait(g_answers, seen, deadline);
  }
  for (std::size_t i = 0; i < threads.size(); ++i) {
    if (!is_asked(i)) continue;
    Request& request = g_requests[i];
    ::syscall(SYS_timer_delete, timers[i]);
    for (;;) {
      const std::uint32_t seen = g_answers.load(std::memory_order_acquire);
      std::uint32_t expected = armed;
      if (request.state.compare_exchange_strong(expected, idle, std::memory_order_acquire,
                                                std::memory_order_acquire) ||
          expected == done) {
        break;
      }
      futex_wait(g_answers, seen);  // the handler has it: a stack's length, and it answers
    }
    if (request.looks.load(std::memory_order_relaxed) == 0) {
      findings[i].reason = "it runs, and did not take the signal in time";
    } else {
      read_answer(request, *threads[i], findings[i]);
    }
    request.state.store(idle, std::memory_order_relaxed);
  }
}

}  // namespace

void signal_and_look(Census& census, std::span<Thread* const> threads, const RangeSet& ranges,
                     std::int64_t wait_ns, Finding* findings) {
  const Deadline deadline{now_ns() + wait_ns};
  for (std::size_t from = 0; from < threads.size(); from += most_at_once) {
    const std::size_t n = std::min(most_at_once, threads.size() - from);
    signal_some(census, threads.subspan(from, n), ranges, deadline, findings + from);
  }
}

}  // namespace molt::threads
