// molt-torture - many threads call hooks while modules are loaded, unloaded, disabled, enabled,
// replaced and re-ordered at random, and an oracle looks at every single invocation:
//
//   no callback of a version before it is live or after its exit; exit() with nobody inside
//   each module at most once an invocation; the anchors exactly once, first and last
//   a callback that stops the walk is the last
//   a thread that saw a newer version of a module never sees an older one again, at any hook
//   afterwards no mapping, descriptor or thread is left
//
// Callers nest, are interrupted by signals whose handlers call hooks, are born and die, and fork. The
// modules start threads, some of which nobody knows of; code that such a thread returns to must be
// there.
//
// With --cycles one module comes and goes so often beside two callers, and what the process holds must
// not grow.
//
// Exit code 0: nothing found. 1: a violation, with the seed that repeats it. 2: could not be run.

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <molt/host.hpp>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "torture.hpp"

using namespace torture;

namespace {

molt::hook<Point<0>> hook0;
molt::hook<Point<1>> hook1;

std::string g_modules;
std::uint64_t g_seed = 1;
bool g_threads = true;  // modules start threads
std::atomic<bool> g_stop{false};
std::atomic<std::uint64_t> g_calls{0}, g_changes{0}, g_refused{0}, g_forks{0}, g_births{0};
std::atomic<int> g_kept{0};
constexpr int kept_shown = 5;
std::atomic<const char*> g_violation{nullptr};

void violate(const char* what) {
  // A module's text goes with the module.
  static std::atomic<bool> is_taken{false};
  static char text[128];
  if (!is_taken.exchange(true, std::memory_order_acq_rel)) {
    std::snprintf(text, sizeof text, "%s", what);
    g_violation.store(text, std::memory_order_release);
  }
  g_stop.store(true, std::memory_order_release);
}

double now_s() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// --- callers ------------------------------------------------------------------------------------

struct Seen {
  std::uint64_t id[members] = {};
};

void judge(const Call& call) {
  if (call.violation) return violate(call.violation);
  bool twice[members] = {};
  for (int i = 0; i < call.count; ++i) {
    int lineage = call.steps[i].lineage;
    if (twice[lineage]) violate("a module was called twice in one invocation");
    twice[lineage] = true;
    if (lineage == call.stop_at && i + 1 != call.count) violate("the walk went on after its end");
  }
  if (call.count == 0 || call.steps[0].lineage != first_anchor) {
    violate("the first anchor was not called first");
  }
  bool stopped = call.count > 0 && call.steps[call.count - 1].lineage == call.stop_at;
  if (!stopped && (call.count == 0 || call.steps[call.count - 1].lineage != last_anchor)) {
    violate("the last anchor was not called last");
  }
}

void nested(Call& outer) {
  Call call;
  call.random = outer.next_random() | 1;
  call.depth = outer.depth + 1;
  call.nested = nested;
  call.seen = outer.seen;
  (outer.random & 1 ? hook0(call) : hook1(call));
  judge(call);
}

void invoke(Seen& seen, std::uint64_t& random) {
  Call call;
  random = random * 6364136223846793005u + 1442695040888963407u;
  call.random = (random >> 8) | 1;
  call.nested = nested;
  if (random >> 60 == 0) call.stop_at = static_cast<int>((random >> 20) % lineages);
  call.seen = seen.id;
  (random >> 40 & 1 ? hook0(call) : hook1(call));
  judge(call);
}

thread_local std::uint64_t t_signal_random = 88172645463325252u;
// A handler may see newer versions than the invocation that it interrupted: that one was entered
// earlier, and its own frame says so. So handlers have a list of their own.
thread_local Seen t_signal_seen;
void on_signal(int) {
  // On top of whatever the thread was doing, be it in the middle of a hook call.
  Call call;
  call.random = t_signal_random = t_signal_random * 6364136223846793005u + 1;
  call.random |= 1;
  call.seen = t_signal_seen.id;
  hook0(call);
  judge(call);
}

// A sanitizer has a report of its own about that.
[[maybe_unused]] void on_crash(int signal) {
  // Most likely code that is gone. Only what may be done in such a state.
  constexpr char text[] = "torture: VIOLATION: crash, a thread ran or read what is gone\n";
  (void)!write(1, text, sizeof text - 1);
  _exit(signal == SIGSEGV || signal == SIGBUS || signal == SIGILL ? 1 : 3);
}

struct Caller {
  std::thread thread;
  std::atomic<pthread_t> id{0};
};

void call_until_stopped(Caller* caller, std::uint64_t seed) {
  Seen seen;
  std::uint64_t random = seed;
  caller->id.store(pthread_self(), std::memory_order_release);
  std::uint64_t calls = 0;
  while (!g_stop.load(std::memory_order_relaxed)) {
    invoke(seen, random);
    ++calls;
  }
  g_calls.fetch_add(calls, std::memory_order_relaxed);
  caller->id.store(0, std::memory_order_release);
}

// --- changes ------------------------------------------------------------------------------------

struct Lineage {
  std::mutex mutex;  // one change at a time for each module; different ones at once
  Instance* current = nullptr;
  bool enabled = true;
  std::uint64_t next_id = 1;
  // For ever: threads refer to them to the end.
  std::deque<Instance>& instances = *new std::deque<Instance>;
};
Lineage g_lineages[members];

std::string name_of(int lineage) { return "torture_" + std::to_string(lineage); }
std::string path_of(int lineage, int version) {
  return g_modules + "/torture_" + std::to_string(lineage) + "_v" + std::to_string(version) + ".so";
}
std::string args_of(const Instance& instance) {
  std::string args = "instance=" + std::to_string(reinterpret_cast<std::uintptr_t>(&instance));
  if (g_threads && instance.lineage < lineages)
    args += " threads=" + std::to_string(instance.id % 4);
  return args;
}
Instance* new_instance(Lineage& lineage, int index) {
  Instance& instance = lineage.instances.emplace_back();
  instance.lineage = index;
  instance.id = lineage.next_id++;
  return &instance;
}

// After an unload has answered: nobody is inside, and nobody comes.
void gone(Instance& instance) {
  if (instance.inside.load(std::memory_order_acquire) != 0) {
    violate("unload answered while a thread was inside");
  }
  if (instance.state.load(std::memory_order_acquire) == Instance::unloaded) {
    violate("exit() ran while a thread was inside");
  }
  instance.state.store(Instance::unloaded, std::memory_order_release);
}

// False: it is done, but its memory had to stay for now, and a thread may be inside.
bool expect(int result, const char* what) {
  if (result == 0) {
    g_changes.fetch_add(1, std::memory_order_relaxed);
    const bool kept = *molt_last_error() != 0;
    if (kept && g_kept.fetch_add(1, std::memory_order_relaxed) < kept_shown) {
      std::printf("torture: %s: %s\n", what, molt_last_error());
    }
    return !kept;
  }
  // Nobody stays for long: nothing here has a reason to give up.
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  std::fprintf(stderr, "torture: %s: %s\n", what, molt_last_error());
  violate("an operation failed that had no reason to");
  return false;
}

void change(int index, std::uint64_t random) {
  Lineage& lineage = g_lineages[index];
  std::lock_guard lock(lineage.mutex);
  int version = 1 + static_cast<int>(random >> 33 & 1);
  std::string name = name_of(index);
  if (lineage.current == nullptr) {
    Instance* instance = new_instance(lineage, index);
    expect(molt_load(path_of(index, version).c_str(), args_of(*instance).c_str(), 0, -1), "load");
    lineage.current = instance;
    lineage.enabled = true;
    return;
  }
  switch (random >> 40 & 7) {
    case 0:
    case 1:
    case 2: {
      if (expect(molt_unload(name.c_str(), 0, -1), "unload")) gone(*lineage.current);
      lineage.current = nullptr;
      return;
    }
    case 3:
    case 4:
    case 5: {
      Instance* instance = new_instance(lineage, index);
      if (expect(molt_replace(name.c_str(), path_of(index, version).c_str(),
                              args_of(*instance).c_str(), 0, -1),
                 "replace")) {
        gone(*lineage.current);
      }
      lineage.current = instance;
      return;
    }
    default:
      expect(lineage.enabled ? molt_disable(name.c_str()) : molt_enable(name.c_str()),
             "disable/enable");
      lineage.enabled = !lineage.enabled;
  }
}

void reorder(std::uint64_t random) {
  std::string order;
  for (int i = 0; i < lineages; ++i) {
    order += name_of(static_cast<int>((random >> (8 * i)) % lineages)) + ",";
  }
  const char* hook = random >> 50 & 1 ? "torture.0" : random >> 51 & 1 ? "torture.1" : nullptr;
  expect(molt_hook_set_order(hook, order.c_str()), "order");
}

void change_until_stopped(std::uint64_t seed) {
  std::uint64_t random = seed;
  while (!g_stop.load(std::memory_order_relaxed)) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    if (random >> 60 == 0) {
      reorder(random);
    } else {
      change(static_cast<int>((random >> 20) % lineages), random);
    }
  }
}

// --- births, signals, forks -----------------------------------------------------------------------

void bear_until_stopped(std::uint64_t seed) {
  while (!g_stop.load(std::memory_order_relaxed)) {
    std::thread([seed = ++seed] {
      Seen seen;
      std::uint64_t random = seed * 0x9e3779b97f4a7c15u;
      for (int i = 0; i < 20; ++i) invoke(seen, random);
    }).join();
    g_births.fetch_add(1, std::memory_order_relaxed);
  }
}

void signal_until_stopped(std::vector<Caller>* callers) {
  std::size_t i = 0;
  while (!g_stop.load(std::memory_order_relaxed)) {
    pthread_t id = (*callers)[i++ % callers->size()].id.load(std::memory_order_acquire);
    // Callers end only after this thread has.
    if (id != 0) pthread_kill(id, SIGUSR1);
    timespec nap{0, 300'000};
    nanosleep(&nap, nullptr);  // tidy: sleep-ok the rate of signals
  }
}

[[maybe_unused]] void fork_until_stopped() {
  while (!g_stop.load(std::memory_order_relaxed)) {
    pid_t child = fork();
    if (child == 0) {
      alarm(20);  // a child that hangs is a violation, seen by its signal
      g_violation.store(nullptr, std::memory_order_relaxed);
      Seen seen;
      std::uint64_t random = 7;
      for (int i = 0; i < 200; ++i) invoke(seen, random);
      _exit(g_violation.load(std::memory_order_relaxed) ? 1 : 0);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
      violate("a forked child did not get through its hooks");
    }
    g_forks.fetch_add(1, std::memory_order_relaxed);
    timespec nap{0, 20'000'000};
    nanosleep(&nap, nullptr);  // tidy: sleep-ok the rate of forks
  }
}

// --- what is left ---------------------------------------------------------------------------------

long entries_of(const char* folder) {
  DIR* dir = opendir(folder);
  long n = 0;
  while (dir != nullptr && readdir(dir) != nullptr) ++n;
  if (dir != nullptr) closedir(dir);
  return n;
}
bool left(long threads) { return entries_of("/proc/self/task") != threads; }
struct Holdings {
  long rss_kib = 0, mappings = 0, descriptors = 0, threads = 0;
};
Holdings holdings() {
  Holdings h;
  std::ifstream rollup("/proc/self/smaps_rollup");
  for (std::string line; std::getline(rollup, line);) {
    if (line.rfind("Rss:", 0) == 0) h.rss_kib = std::atol(line.c_str() + 4);
  }
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) ++h.mappings;
  h.descriptors = entries_of("/proc/self/fd");
  h.threads = entries_of("/proc/self/task");
  return h;
}
long module_mappings() {
  std::ifstream maps("/proc/self/maps");
  long n = 0;
  for (std::string line; std::getline(maps, line);) {
#if defined(__SANITIZE_THREAD__)
    // For each report, also one that is then suppressed, it maps the files of all loaded modules, to read
    // in them, and keeps them so.
    if (line.find(" r--p ") != std::string::npos) continue;
#endif
    n += line.find("/store/") != std::string::npos;
  }
  return n;
}

// --- cycles -----------------------------------------------------------------------------------------

void call_now_and_then(std::uint64_t seed) {
  Seen seen;
  std::uint64_t random = seed;
  while (!g_stop.load(std::memory_order_relaxed)) {
    for (int i = 0; i < 8; ++i) invoke(seen, random);
    timespec nap{0, 100'000};
    nanosleep(&nap, nullptr);  // tidy: sleep-ok the rate of calls
  }
}

void one_cycle(Lineage& lineage) {
  // The record is the same each time: nothing here may grow.
  static Instance instance;
  instance.state.store(Instance::coming, std::memory_order_release);
  instance.id = lineage.next_id++;
  expect(molt_load(path_of(0, 1).c_str(), args_of(instance).c_str(), 0, -1), "load");
  if (expect(molt_unload(name_of(0).c_str(), 0, -1), "unload")) gone(instance);
}

void run_cycles(long cycles) {
  constexpr long warm_up = 1000;
  constexpr long most_kib = 1024;  // what the allocator and the stack cache may still take
  std::vector<std::thread> callers;
  for (std::uint64_t i = 0; i < 2; ++i) callers.emplace_back(call_now_and_then, g_seed + i);
  Holdings before;
  const double from = now_s();
  for (long i = 0; i < warm_up + cycles && !g_stop.load(std::memory_order_acquire); ++i) {
    if (i == warm_up) before = holdings();
    one_cycle(g_lineages[0]);
    if (i % 10'000 == 0 && i != 0) {
      std::printf("torture: %ld of %ld cycles, %.0f s, %ld KiB more\n", i, cycles, now_s() - from,
                  holdings().rss_kib - before.rss_kib);
      std::fflush(stdout);
    }
  }
  // Threads that nobody counts may be ending still.
  for (double end = now_s() + 10; holdings().threads != before.threads && now_s() < end;) {
    sched_yield();
  }
  const Holdings after = holdings();
  g_stop.store(true, std::memory_order_release);
  for (std::thread& caller : callers) caller.join();
  std::printf(
      "torture: %ld cycles in %.0f s: %ld KiB, %ld mappings, %ld descriptors, %ld threads more\n",
      cycles, now_s() - from, after.rss_kib - before.rss_kib, after.mappings - before.mappings,
      after.descriptors - before.descriptors, after.threads - before.threads);
  if (after.rss_kib > before.rss_kib + most_kib) violate("the process grows");
  if (after.mappings > before.mappings + 8) violate("mappings grow");
  if (after.descriptors != before.descriptors) violate("descriptors grow");
  if (after.threads != before.threads) violate("threads grow");
}

void run_everything(double seconds) {
  std::vector<Caller> callers(6);
  std::vector<std::thread> others;
  for (std::size_t i = 0; i < callers.size(); ++i) {
    callers[i].thread = std::thread(call_until_stopped, &callers[i], g_seed + i);
  }
  for (std::uint64_t i = 0; i < 2; ++i) others.emplace_back(change_until_stopped, g_seed * 31 + i);
  others.emplace_back(bear_until_stopped, g_seed);
  others.emplace_back(signal_until_stopped, &callers);
#if !defined(__SANITIZE_THREAD__)
  // ThreadSanitizer does not support threads in a forked child of a threaded process.
  others.emplace_back(fork_until_stopped);
#endif

  double end = now_s() + seconds;
  while (now_s() < end && !g_stop.load(std::memory_order_acquire)) {
    timespec nap{0, 20'000'000};
    nanosleep(&nap, nullptr);  // tidy: sleep-ok the torture's length is the subject
  }
  g_stop.store(true, std::memory_order_release);
  for (std::thread& thread : others) thread.join();
  for (Caller& caller : callers) caller.thread.join();
}

}  // namespace

int main(int argc, char** argv) {
  // Under a sanitizer the newest unloaded modules would stay mapped, and be taken for leftovers.
  setenv("MOLT_QUARANTINE", "0", 1);
  double seconds = 3;
  long cycles = 0;
  g_seed = static_cast<std::uint64_t>(time(nullptr));
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--seconds") == 0 && i + 1 < argc) {
      seconds = std::atof(argv[++i]);
    } else if (std::strcmp(argv[i], "--cycles") == 0 && i + 1 < argc) {
      cycles = std::atol(argv[++i]);
    } else if (std::strcmp(argv[i], "--no-threads") == 0) {
      g_threads = false;
    } else if (std::strcmp(argv[i], "--seed") == 0 && i + 1 < argc) {
      g_seed = std::strtoull(argv[++i], nullptr, 0);
    } else if (std::strcmp(argv[i], "--modules") == 0 && i + 1 < argc) {
      g_modules = argv[++i];
    } else {
      std::fprintf(stderr,
                   "usage: molt-torture [--seconds N | --cycles N] [--seed N] [--no-threads] "
                   "[--modules DIR]\n");
      return 2;
    }
  }
  if (g_modules.empty()) {
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    std::string program(self, n > 0 ? static_cast<std::size_t>(n) : 0);
    g_modules = program.substr(0, program.rfind('/')) + "/../lib/torture";
  }
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigaction(SIGUSR1, &action, nullptr);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  action.sa_handler = on_crash;
  action.sa_flags = 0;
  for (int signal : {SIGSEGV, SIGBUS, SIGILL}) sigaction(signal, &action, nullptr);
#endif

  for (int anchor : {first_anchor, last_anchor}) {
    Instance* instance = new_instance(g_lineages[anchor], anchor);
    if (molt_load(path_of(anchor, 1).c_str(), args_of(*instance).c_str(), 0, -1) != 0) {
      std::fprintf(stderr, "torture: %s\n", molt_last_error());
      return 2;
    }
    g_lineages[anchor].current = instance;
  }
  // The first unload of all starts the thread that looks at the others.
  Instance warm;
  if (molt_load(path_of(0, 1).c_str(), args_of(warm).c_str(), 0, -1) != 0 ||
      molt_unload(name_of(0).c_str(), 0, -1) != 0) {
    std::fprintf(stderr, "torture: %s\n", molt_last_error());
    return 2;
  }
  long fds = entries_of("/proc/self/fd"), threads = entries_of("/proc/self/task");

  std::printf("torture: seed %llu\n", static_cast<unsigned long long>(g_seed));
  std::fflush(stdout);
  cycles != 0 ? run_cycles(cycles) : run_everything(seconds);

  for (int i = 0; i < members && !g_violation.load(std::memory_order_acquire); ++i) {
    if (g_lineages[i].current == nullptr) continue;
    if (expect(molt_unload(name_of(i).c_str(), 0, -1), "last unload")) {
      gone(*g_lineages[i].current);
    }
  }
  // What a word on a caller's stack has held back is free now, there are no callers, and is freed in
  // the background.
  int late = 0;
  const double end = now_s() + 10;
  while (!g_violation.load(std::memory_order_acquire) &&
         (module_mappings() != 0 || left(threads)) && now_s() < end) {
    late += molt_gc();
    timespec nap{0, 10'000'000};
    nanosleep(&nap, nullptr);  // tidy: sleep-ok nobody tells when the last of them is gone
  }
  if (!g_violation.load(std::memory_order_acquire)) {
    if (module_mappings() != 0) {
      std::ifstream maps("/proc/self/maps");
      for (std::string line; std::getline(maps, line);) {
        if (line.find("/store/") != std::string::npos)
          std::printf("torture: left: %s\n", line.c_str());
      }
    }
    if (left(threads)) {
      DIR* dir = opendir("/proc/self/task");
      while (dirent* entry = readdir(dir)) {
        std::ifstream comm(std::string("/proc/self/task/") + entry->d_name + "/comm");
        std::string name;
        if (std::getline(comm, name)) std::printf("torture: thread: %s\n", name.c_str());
      }
      closedir(dir);
    }
    if (module_mappings() != 0) violate("mappings of modules are left");
    if (entries_of("/proc/self/fd") != fds) violate("descriptors are left");
    if (entries_of("/proc/self/task") != threads) violate("threads are left");
  }
  std::printf("torture: %llu calls, %llu changes, %llu births, %llu forks, %d freed late\n",
              static_cast<unsigned long long>(g_calls.load(std::memory_order_relaxed)),
              static_cast<unsigned long long>(g_changes.load(std::memory_order_relaxed)),
              static_cast<unsigned long long>(g_births.load(std::memory_order_relaxed)),
              static_cast<unsigned long long>(g_forks.load(std::memory_order_relaxed)), late);
  if (const char* what = g_violation.load(std::memory_order_acquire)) {
    std::printf("torture: VIOLATION: %s\nrepeat with: molt-torture --seconds %g --seed %llu\n",
                what, seconds, static_cast<unsigned long long>(g_seed));
    return 1;
  }
  std::printf("torture: no violation\n");
  return 0;
}
