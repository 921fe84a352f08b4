// molt-livepatch-torture: patches are applied, reverted in any order, turned back half-way, replaced
// and forced at random, while threads call the patched functions: busy ones, ones that sleep in them,
// ones that live for a few calls, signal handlers (on their own stacks too), destructors at a thread's
// end, and forked children, which go on with the transition that they were born into.
//
// Oracle     V1 All versions met in one activation are the same (activation.hpp).
//            V2 Within one transition a thread that has seen the version aimed at never sees the one
//               before again, in an outermost call.
//            V3 When nothing is under way everybody sees the version in force, and no other.
//            V4 At the end no module is left, and every patch could be unloaded.
// Forced transitions are exempt from V1 while they last, as is what began before them.

#include <dirent.h>
#include <linux/futex.h>
#include <molt/livepatch.h>
#include <molt/molt.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "activation.hpp"

using livepatch_torture::Note;

LPT_TARGET void lpt_outer(Note* note) { livepatch_torture::outer<0>(note); }
LPT_TARGET void lpt_middle(Note* note) { livepatch_torture::middle<0>(note); }
LPT_TARGET void lpt_inner(Note* note) { livepatch_torture::inner<0>(note); }

namespace {

constexpr int patches = 4;
constexpr int worker_count = 6;

std::atomic<bool> g_stop{false};
std::atomic<const char*> g_violation{nullptr};
std::atomic<std::uint32_t> g_epoch{0};
std::atomic<std::uint64_t> g_calls{0}, g_handled{0}, g_births{0}, g_forks{0},
    g_finished_in_child{0};
std::uint64_t g_seed = 1;
bool g_verbose = false;   // says who holds up what takes long
long g_signal_us = 1000;  // between signals
std::string g_modules;

void violate(const char* what) {
  const char* none = nullptr;
  g_violation.compare_exchange_strong(none, what, std::memory_order_acq_rel);
  g_stop.store(true, std::memory_order_release);
}

// What is expected, in one word: a number that grows, whether nothing is under way, and the versions.
struct Phase {
  enum Kind : std::uint64_t { unknown, moving, idle };
  static std::uint64_t pack(std::uint64_t number, Kind kind, int from, int to) {
    return number << 16 | kind << 12 | static_cast<std::uint64_t>(from) << 6 |
           static_cast<std::uint64_t>(to);
  }
  explicit Phase(std::uint64_t packed) : word(packed) {}
  Kind kind() const { return static_cast<Kind>(word >> 12 & 15); }
  int from() const { return static_cast<int>(word >> 6 & 63); }
  int to() const { return static_cast<int>(word & 63); }
  std::uint64_t word;
};
std::atomic<std::uint64_t> g_phase{Phase::pack(0, Phase::idle, 0, 0)};
std::uint64_t g_number = 0;
void set_phase(Phase::Kind kind, int from, int to) {
  g_phase.store(Phase::pack(++g_number, kind, from, to), std::memory_order_seq_cst);
}

struct Thread {
  Note note;
  std::uint64_t phase = 0;  // in which `has_changed` was noted
  bool has_changed = false;
  std::uint64_t calls = 0;
  std::atomic<pthread_t> id{0};
};
thread_local Thread* t_self __attribute__((tls_model("initial-exec"))) = nullptr;

void sleep_us(long us) {
  const timespec nap{0, us * 1000};
  nanosleep(&nap, nullptr);  // tidy: sleep-ok random delays are what this is made of
}

void linger(Note& note) {
  const std::uint64_t r = note.next_random();
  if (r % 4 == 0) sched_yield();
  if (r % 64 == 1) sleep_us(static_cast<long>(r >> 8 & 255));
  if (r % 1024 == 2) sleep_us(2000);
  for (std::uint64_t i = r >> 16 & 63; i > 0; --i) asm volatile("" ::: "memory");
}

// Of threads that are hardly anywhere but on their way in.
void hurry(Note&) {}

// One outermost call, and what it must have met.
void call(Thread& self) {
  Note& note = self.note;
  const std::uint64_t before = g_phase.load(std::memory_order_seq_cst);
  note.epoch = g_epoch.load(std::memory_order_seq_cst);
  switch (note.next_random() % 4) {
    case 0:
      lpt_inner(&note);
      break;
    case 1:
      lpt_middle(&note);
      break;
    default:
      lpt_outer(&note);
  }
  const std::uint64_t after = g_phase.load(std::memory_order_seq_cst);
  ++self.calls;
  if (note.is_mixed) violate("V1: two versions in one activation");
  if (before != after) return;
  const Phase phase(before);
  if (phase.kind() == Phase::idle && note.version != phase.to()) {
    violate("V3: not the version in force");
  }
  if (phase.kind() != Phase::moving) return;
  if (note.version != phase.from() && note.version != phase.to()) {
    violate("V2: a version of neither side");
  }
  const bool is_new = note.version == phase.to();
  if (self.phase == before && self.has_changed && !is_new) violate("V2: the old version again");
  self.has_changed = is_new || (self.phase == before && self.has_changed);
  self.phase = before;
}

void begin(Thread& self, std::uint64_t seed) {
  self.note.random = seed * 0x9e3779b97f4a7c15 | 1;
  self.note.linger = linger;
  self.note.epochs = &g_epoch;
  t_self = &self;
}

// Interrupts a function, a gate, or neither. What it calls belongs to the activation that it interrupts,
// if there is one.
void on_signal(int) {
  Thread* self = t_self;
  if (self == nullptr) return;
  const int saved = errno;
  Note& note = self->note;
  const Note interrupted = note;
  if (interrupted.depth == 0) {
    note.epoch = g_epoch.load(std::memory_order_seq_cst);
  }
  if (note.chance(3)) sleep_us(2000);
  if (note.depth < 6) lpt_middle(&note);
  const bool is_mixed = note.is_mixed;
  note = interrupted;
  note.is_mixed = is_mixed;
  g_handled.fetch_add(1, std::memory_order_relaxed);
  errno = saved;
}

void on_crash(int signal) {
  char text[] = "torture: VIOLATION: crashed with signal ..\n";
  text[sizeof text - 4] = static_cast<char>('0' + signal / 10);
  text[sizeof text - 3] = static_cast<char>('0' + signal % 10);
  (void)!write(STDOUT_FILENO, text, sizeof text - 1);
  _exit(1);
}

void work(Thread* self, std::uint64_t seed, bool own_stack, bool hurries) {
  begin(*self, seed);
  if (hurries) self->note.linger = hurry;
  void* stack = nullptr;
  constexpr std::size_t stack_bytes = 256 * 1024;
  if (own_stack) {
    stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const stack_t alternate{stack, 0, stack_bytes};
    sigaltstack(&alternate, nullptr);
  }
  self->id.store(pthread_self(), std::memory_order_release);
  while (!g_stop.load(std::memory_order_acquire)) {
    call(*self);
    if (self->note.chance(16)) sched_yield();
    if (!hurries && self->note.chance(32))
      sleep_us(static_cast<long>(self->note.next_random() % 200));
  }
  // No more signals, so that the alternate stack can go.
  sigset_t usr;
  sigemptyset(&usr);
  sigaddset(&usr, SIGUSR1);
  sigaddset(&usr, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &usr, nullptr);
  t_self = nullptr;
  if (own_stack) {
    const stack_t none{nullptr, SS_DISABLE, 0};
    sigaltstack(&none, nullptr);
    munmap(stack, stack_bytes);
  }
  g_calls.fetch_add(self->calls, std::memory_order_relaxed);
}

// --- the others ----------------------------------------------------------------------------------------

pthread_key_t g_at_exit;
void call_at_exit(void* given) {
  auto* self = static_cast<Thread*>(given);
  call(*self);
  g_calls.fetch_add(self->calls, std::memory_order_relaxed);
  t_self = nullptr;
  delete self;
}

void* live_shortly(void* seed) {
  auto* self = new Thread;
  begin(*self, reinterpret_cast<std::uint64_t>(seed));
  pthread_setspecific(g_at_exit, self);
  for (int i = 0; i < 5; ++i) call(*self);
  return nullptr;
}

void bear_until_stopped(std::uint64_t seed) {
  while (!g_stop.load(std::memory_order_acquire)) {
    pthread_t young[4];
    int born = 0;
    for (; born < 4; ++born) {
      if (pthread_create(&young[born], nullptr, live_shortly, reinterpret_cast<void*>(++seed)) != 0)
        break;
    }
    for (int i = 0; i < born; ++i) pthread_join(young[i], nullptr);
    g_births.fetch_add(static_cast<std::uint64_t>(born), std::memory_order_relaxed);
    sleep_us(500);
  }
}

void signal_until_stopped(std::vector<Thread>* workers) {
  std::uint64_t n = 0;
  while (!g_stop.load(std::memory_order_acquire)) {
    Thread& one = (*workers)[n++ % workers->size()];
    const pthread_t id = one.id.load(std::memory_order_acquire);
    if (id != 0) pthread_kill(id, n % 3 == 0 ? SIGUSR2 : SIGUSR1);
    // Not so many that nothing but handlers runs.
    sleep_us(g_signal_us);
  }
}

// In the child: the transition is what it was; nobody works on it but who asks here.
int live_on(Thread& self) {
  for (int i = 0; i < 20; ++i) call(self);
  constexpr int patience_ms = 2000;
  bool is_over = false;
  if (self.note.chance(2)) {
    is_over = molt_patch_wait(patience_ms) == 0;
    if (!is_over && errno == ETIMEDOUT) return 3;
  }
  int last = -1;
  for (int i = 0; i < 20; ++i) {
    call(self);
    if (is_over && last >= 0 && self.note.version != last) return 4;
    last = self.note.version;
  }
  if (g_violation.load(std::memory_order_acquire) != nullptr) return 5;
  return is_over ? 1 : 0;
}

void fork_until_stopped(std::uint64_t seed) {
  Thread self;
  begin(self, seed);
  while (!g_stop.load(std::memory_order_acquire)) {
    call(self);
    const pid_t child = fork();
    if (child == 0) {
      // Nothing is known of what the parent had under way, but that no version is of a third side.
      g_phase.store(Phase::pack(0, Phase::unknown, 0, 0), std::memory_order_seq_cst);
      alarm(20);
      _exit(live_on(self));
    }
    int status = 0;
    if (child > 0) {
      waitpid(child, &status, 0);
      g_forks.fetch_add(1, std::memory_order_relaxed);
      const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 99;
      if (code == 1) g_finished_in_child.fetch_add(1, std::memory_order_relaxed);
      if (code == 3) violate("a child's transition did not end");
      if (code == 4) violate("V3 in a forked child");
      if (code == 5) violate("V1 or V2 in a forked child");
      if (code > 5) {
        std::printf("torture: child ended with status %#x\n", static_cast<unsigned>(status));
        violate("a forked child died");
      }
    }
    sleep_us(3000);
  }
  g_calls.fetch_add(self.calls, std::memory_order_relaxed);
}

// --- patches -------------------------------------------------------------------------------------------

class Controller {
 public:
  explicit Controller(std::uint64_t seed) { dice_.random = seed * 31 | 1; }

  void run_until_stopped() {
    while (!g_stop.load(std::memory_order_acquire)) step();
  }
  // V4.
  void take_all_back() {
    while (!stack_.empty() && !g_violation.load(std::memory_order_acquire)) {
      revert(stack_.size() - 1, false, false);
    }
    for (double end = now_s() + 20;
         !loaded_.empty() && now_s() < end && !g_violation.load(std::memory_order_acquire);) {
      unload_idle();
    }
    if (!loaded_.empty() && !g_violation.load(std::memory_order_acquire)) {
      std::printf("torture: lpt_%d: %s\n", loaded_.front(), molt_last_error());
      violate("V4: a patch could not be unloaded");
    }
  }
  std::uint64_t applied = 0, reverted = 0, turned = 0, replaced = 0, forced = 0, held = 0;

 private:
  static double now_s() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) / 1e9;
  }
  int top() const { return stack_.empty() ? 0 : stack_.back(); }
  static std::string name(int patch) { return "lpt_" + std::to_string(patch); }

  void step() {
    unload_idle();
    if (stack_.size() < patches && (stack_.empty() || dice_.chance(2))) {
      apply();
    } else {
      revert(dice_.next_random() % stack_.size(), dice_.chance(3), dice_.chance(12));
    }
    if (dice_.chance(3)) sleep_us(static_cast<long>(dice_.next_random() % 2000));
  }

  void unload_idle() {
    std::erase_if(loaded_, [&](int patch) {
      if (std::find(stack_.begin(), stack_.end(), patch) != stack_.end()) return false;
      // Memory goes in the background, as soon as no word on a stack looks like a way into it.
      return molt_unload(name(patch).c_str(), MOLT_UNLOAD_LAZY, 0) == 0;
    });
  }

  void apply() {
    std::vector<int> free;
    for (int i = 1; i <= patches; ++i) {
      if (std::find(loaded_.begin(), loaded_.end(), i) == loaded_.end()) free.push_back(i);
    }
    if (free.empty()) return;
    const int patch = free[dice_.next_random() % free.size()];
    const bool replaces = !stack_.empty() && dice_.chance(4);
    const bool turns = dice_.chance(3), forces = !turns && dice_.chance(12);
    const int from = top();
    set_phase(Phase::moving, from, patch);
    const std::string path = g_modules + "/" + name(patch) + ".so";
    if (molt_load(path.c_str(), replaces ? "replace=1" : "", 0, 20000) != 0) {
      // Somebody stood in a prologue for too long, say: everything is as it was.
      if (++held == 1 || g_verbose) std::printf("torture: held up: %s\n", molt_last_error());
      set_phase(Phase::idle, from, from);
      return;
    }
    loaded_.push_back(patch);
    stack_.push_back(patch);
    ++applied;
    if (turns && turn_back(patch, false)) {
      stack_.pop_back();
      // It may have been complete before: then what it replaced is gone.
      if (replaces && molt_patch_set_enabled(name(from).c_str(), 1) == -ENOENT) stack_.clear();
      finish(patch, top(), false);
      return;
    }
    if (!finish(from, patch, forces)) return;
    if (!replaces) return;
    ++replaced;
    stack_.erase(stack_.begin(), stack_.end() - 1);
  }

  void revert(std::size_t at, bool turns, bool forces) {
    const int patch = stack_[at];
    const int from = top();
    const bool is_top = at + 1 == stack_.size();
    const int to = is_top ? (at == 0 ? 0 : stack_[at - 1]) : from;
    set_phase(Phase::moving, from, to);
    if (molt_patch_set_enabled(name(patch).c_str(), 0) != 0) {
      std::printf("torture: %s: %s\n", name(patch).c_str(), molt_last_error());
      return violate("a patch could not be disabled");
    }
    ++reverted;
    if (turns && turn_back(patch, true)) {
      finish(to, from, false);
      return;
    }
    stack_.erase(stack_.begin() + static_cast<std::ptrdiff_t>(at));
    finish(from, to, forces);
  }

  // False: it was over already.
  bool turn_back(int patch, bool to_enabled) {
    if (dice_.chance(2)) sleep_us(static_cast<long>(dice_.next_random() % 300));
    const Phase before(g_phase.load(std::memory_order_relaxed));
    set_phase(Phase::unknown, 0, 0);
    const int result = molt_patch_set_enabled(name(patch).c_str(), to_enabled);
    if (result == 0) {
      // Applied: if it was over, this was an ordinary revert; both end the same way.
      ++turned;
      return true;
    }
    set_phase(Phase::moving, before.from(), before.to());
    if (to_enabled) return false;  // gone already
    std::printf("torture: %s: %s\n", name(patch).c_str(), molt_last_error());
    violate("a transition could not be turned back");
    return false;
  }

  bool finish(int from, int to, bool forces) {
    if (Phase(g_phase.load(std::memory_order_relaxed)).kind() == Phase::unknown) {
      set_phase(Phase::moving, from, to);
    }
    if (forces) {
      set_phase(Phase::unknown, from, to);
      g_epoch.fetch_add(1, std::memory_order_seq_cst);
      for (int i = 1; i <= patches; ++i) forced += molt_patch_force(name(i).c_str()) == 0;
    }
    if (g_verbose && molt_patch_wait(100) != 0) std::printf("torture: %s\n", molt_last_error());
    const int waited = molt_patch_wait(20000);
    if (waited != 0) {
      std::printf("torture: %s\n", molt_last_error());
      violate("a transition did not end");
      return false;
    }
    if (forces) g_epoch.fetch_add(1, std::memory_order_seq_cst);
    set_phase(Phase::idle, to, to);
    return true;
  }

  Note dice_;
  std::vector<int> stack_;   // enabled, oldest first
  std::vector<int> loaded_;  // modules that are there
};

bool is_patch_mapped() {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find("/store/") != std::string::npos) return true;
  }
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 3;
  std::uint64_t calls = 0;  // until so many were made; 0: for so many seconds
  g_seed = static_cast<std::uint64_t>(time(nullptr));
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--seconds") == 0 && i + 1 < argc) {
      seconds = std::atof(argv[++i]);
    } else if (std::strcmp(argv[i], "--calls") == 0 && i + 1 < argc) {
      calls = static_cast<std::uint64_t>(std::atof(argv[++i]));  // 1e9
      seconds = 1e9;
    } else if (std::strcmp(argv[i], "--seed") == 0 && i + 1 < argc) {
      g_seed = std::strtoull(argv[++i], nullptr, 0);
    } else if (std::strcmp(argv[i], "--modules") == 0 && i + 1 < argc) {
      g_modules = argv[++i];
    } else if (std::strcmp(argv[i], "--signal-us") == 0 && i + 1 < argc) {
      g_signal_us = std::atol(argv[++i]);
    } else if (std::strcmp(argv[i], "--verbose") == 0) {
      g_verbose = true;
    } else {
      std::fprintf(
          stderr,
          "usage: molt-livepatch-torture [--seconds N | --calls N] [--seed N] [--modules DIR] "
          "[--signal-us N] [--verbose]\n");
      return 2;
    }
  }
  if (g_modules.empty()) {
    char self[4096];
    const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    const std::string program(self, n > 0 ? static_cast<std::size_t>(n) : 0);
    g_modules = program.substr(0, program.rfind('/')) + "/../lib/torture";
  }
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigaction(SIGUSR1, &action, nullptr);
  action.sa_flags = SA_RESTART | SA_ONSTACK;
  sigaction(SIGUSR2, &action, nullptr);
  action.sa_handler = on_crash;
  action.sa_flags = 0;
  for (int signal : {SIGSEGV, SIGBUS, SIGILL}) sigaction(signal, &action, nullptr);
  pthread_key_create(&g_at_exit, call_at_exit);

  std::printf("torture: %g %s, seed %llu\n", calls != 0 ? static_cast<double>(calls) : seconds,
              calls != 0 ? "calls" : "s", static_cast<unsigned long long>(g_seed));
  std::fflush(stdout);
  std::vector<Thread> workers(worker_count);
  std::vector<std::thread> threads;
  for (int i = 0; i < worker_count; ++i) {
    threads.emplace_back(work, &workers[i], g_seed + i, i % 3 == 2, i % 3 == 0);
  }
  threads.emplace_back(bear_until_stopped, g_seed * 7);
  threads.emplace_back(signal_until_stopped, &workers);
  threads.emplace_back(fork_until_stopped, g_seed * 13);
  Controller controller(g_seed);
  std::thread clock([&] {
    timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    const auto end = static_cast<double>(until.tv_sec) + seconds;
    while (!g_stop.load(std::memory_order_acquire)) {
      timespec now;
      clock_gettime(CLOCK_MONOTONIC, &now);
      if (static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9 > end + 0.5)
        break;
      std::uint64_t made = g_calls.load(std::memory_order_relaxed);
      for (const Thread& worker : workers) {
        made += __atomic_load_n(&worker.calls, __ATOMIC_RELAXED);
      }
      if (calls != 0 && made >= calls) break;
      sleep_us(20000);
    }
    g_stop.store(true, std::memory_order_release);
  });
  controller.run_until_stopped();
  clock.join();
  for (std::thread& thread : threads) thread.join();
  controller.take_all_back();
  for (int i = 0; i < 500 && is_patch_mapped() && !g_violation.load(std::memory_order_acquire);
       ++i) {
    molt_gc();
    sleep_us(10000);
  }
  if (!g_violation.load(std::memory_order_acquire) && is_patch_mapped()) {
    violate("V4: code of a patch is left in memory");
  }
  std::printf(
      "torture: %llu calls, %llu in handlers, %llu births, %llu forks (%llu finished a "
      "transition)\n"
      "torture: %llu applied, %llu reverted, %llu turned back, %llu replaced, %llu forced, %llu "
      "held "
      "up\n",
      static_cast<unsigned long long>(g_calls.load(std::memory_order_relaxed)),
      static_cast<unsigned long long>(g_handled.load(std::memory_order_relaxed)),
      static_cast<unsigned long long>(g_births.load(std::memory_order_relaxed)),
      static_cast<unsigned long long>(g_forks.load(std::memory_order_relaxed)),
      static_cast<unsigned long long>(g_finished_in_child.load(std::memory_order_relaxed)),
      static_cast<unsigned long long>(controller.applied),
      static_cast<unsigned long long>(controller.reverted),
      static_cast<unsigned long long>(controller.turned),
      static_cast<unsigned long long>(controller.replaced),
      static_cast<unsigned long long>(controller.forced),
      static_cast<unsigned long long>(controller.held));
  if (const char* what = g_violation.load(std::memory_order_acquire)) {
    std::printf(
        "torture: VIOLATION: %s\nrepeat with: molt-livepatch-torture --seconds %g --seed %llu\n",
        what, seconds, static_cast<unsigned long long>(g_seed));
    return 1;
  }
  std::printf("torture: no violation\n");
  return 0;
}
