// livepatch.*: what a live patch costs those who call, those who sleep, and those who wait for it.
//
//     call.*        a call of a patched function beside one that is not, of the same object or (plt)
//                   through its PLT: after the transition, and while
//                   one is held up, of a thread that has changed over and of one that has not
//     call.floor    the same by a jump to the same place, and by a jump to a compare and a jump, which the
//                   benchmark writes itself: less cannot be there
//     call.over_floor  a call of the patched function beside that
//     call.rival    the same as libpulp has it: a short jump at the entry, to an indirect one in front of it.
//                   Written by the benchmark as well; in the design's measurements libpulp and LibCare
//                   both took 1.21 of an unpatched call
//     call.over_rival  a call of the patched function beside that
//     pause.N       the longest gap of a thread that does nothing but read the clock, in a process of N
//                   sleeping threads, while a patch is applied and reverted; beside the longest one in as
//                   long a time without: the medians of 60 of each. What other threads take of its
//                   processor is no gap, and told as pause.N.switches; pause.N.longest is the longest of all.
//                   pause.N.stopping is what it takes to stop all threads and let them go, from outside
//     complete.*    from the load of the patch until all threads have changed over
//     disturbed     system calls of sleeping threads that came back early, whatever they slept in

#include <fcntl.h>
#include <linux/futex.h>
#include <molt/livepatch.h>
#include <molt/molt.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/futex.hpp"
#include "benches.hpp"
#include "harness.hpp"
#include "modules.hpp"

asm(R"(
        .pushsection .text.molt_bench_livepatch, "ax", @progbits
        .macro bench_lp_leaf_ name
        .globl \name
        .hidden \name
        .type \name, @function
\name:  lea 1(%rdi), %rax
        ret
        .size \name, . - \name
        .p2align 6
        .endm
        .macro bench_lp_prepared_ name
        .p2align 6
        .skip 59, 0x90
        .byte 0x90, 0x90, 0x90, 0x90, 0x90
        .globl \name
        .hidden \name
        .type \name, @function
\name:  nop
        nop
        lea 1(%rdi), %rax
        ret
        .size \name, . - \name
        .p2align 6
        .endm
        .p2align 6
        bench_lp_leaf_ bench_lp_leaf
        bench_lp_leaf_ bench_lp_leaf_plain
        .globl bench_lp_exported, bench_lp_exported_plain
        .type bench_lp_exported, @function
        .type bench_lp_exported_plain, @function
        .p2align 6
bench_lp_exported:
        lea 1(%rdi), %rax
        ret
        .size bench_lp_exported, . - bench_lp_exported
        .p2align 6
bench_lp_exported_plain:
        lea 1(%rdi), %rax
        ret
        .size bench_lp_exported_plain, . - bench_lp_exported_plain
        .p2align 6
        bench_lp_prepared_ bench_lp_prepared
        bench_lp_prepared_ bench_lp_prepared_plain
        .macro bench_lp_room_ name
        .p2align 6
        .globl \name
        .hidden \name
        .type \name, @function
\name:  .skip 64, 0xcc
        .size \name, . - \name
        .endm
        bench_lp_room_ bench_lp_by_hand
        bench_lp_room_ bench_lp_by_hand_gate
        bench_lp_room_ bench_lp_hand_gate
        bench_lp_room_ bench_lp_by_rival_pad
        .globl bench_lp_by_rival
        .hidden bench_lp_by_rival
        .set bench_lp_by_rival, bench_lp_by_rival_pad + 14
        .p2align 12
        .skip 1536
        .macro bench_lp_loop name target
        .p2align 6
        .type \name, @function
\name:  push %rbx
        mov %rdi, %rbx
        .p2align 6
1:      call \target
        mov %rax, %rdi
        dec %rbx
        jne 1b
        pop %rbx
        ret
        .size \name, . - \name
        .endm
        bench_lp_loop bench_lp_call_leaf bench_lp_leaf
        bench_lp_loop bench_lp_call_leaf_plain bench_lp_leaf_plain
        bench_lp_loop bench_lp_call_prepared bench_lp_prepared
        bench_lp_loop bench_lp_call_prepared_plain bench_lp_prepared_plain
        bench_lp_loop bench_lp_call_by_hand bench_lp_by_hand
        bench_lp_loop bench_lp_call_by_hand_gate bench_lp_by_hand_gate
        bench_lp_loop bench_lp_call_by_rival bench_lp_by_rival
        bench_lp_loop bench_lp_call_plt bench_lp_exported@plt
        bench_lp_loop bench_lp_call_plt_plain bench_lp_exported_plain@plt
        .popsection
)");

extern "C" {
void bench_lp_call_leaf(std::uint64_t), bench_lp_call_leaf_plain(std::uint64_t),
    bench_lp_call_prepared(std::uint64_t), bench_lp_call_prepared_plain(std::uint64_t),
    bench_lp_call_plt(std::uint64_t), bench_lp_call_plt_plain(std::uint64_t),
    bench_lp_call_by_hand(std::uint64_t), bench_lp_call_by_hand_gate(std::uint64_t),
    bench_lp_call_by_rival(std::uint64_t);
[[gnu::visibility("hidden")]] extern unsigned char bench_lp_leaf[], bench_lp_by_hand[],
    bench_lp_by_hand_gate[], bench_lp_hand_gate[], bench_lp_by_rival_pad[];
[[gnu::noipa, gnu::used]] void bench_lp_sleeper();
[[gnu::noipa, gnu::used]] long bench_lp_busy(long n);
}

namespace {
std::atomic<std::uint32_t> g_held{0}, g_inside{0};
}  // namespace

void bench_lp_sleeper() {
  g_inside.fetch_add(1);
  while (g_held.load() != 0) molt::futex_wait(g_held, 1);
  g_inside.fetch_sub(1);
  asm volatile("" ::: "memory");
}

long bench_lp_busy(long n) {
  for (int i = 0; i < 200; ++i) asm volatile("" ::: "memory");
  return n + 1;
}

namespace bench {
namespace {

const char* const patch = "bench_livepatch";

void must(int result, const char* what) {
  if (result != 0) throw std::runtime_error(std::string(what) + ": " + molt_last_error());
}
void load(const char* args) { must(molt_load(module_path(patch).c_str(), args, 0, 30'000), patch); }
void await() { must(molt_patch_wait(30'000), "the transition"); }
void revert() {
  must(molt_patch_set_enabled(patch, 0), "disable");
  await();
}
void unload() { must(molt_unload(patch, 0, 30'000), "unload"); }

// --- calls --------------------------------------------------------------------------------------------

using Calls = void (*)(std::uint64_t);
Compared per_call(int rounds, Calls ours, Calls rival) {
  Pinned pinned;
  struct Loops {
    Calls ours, rival;
  } loops{ours, rival};
  return compare_loops<Loops>(
      rounds, [](std::uint64_t n, Loops* both) { both->ours(n); },
      [](std::uint64_t n, Loops* both) { both->rival(n); }, &loops);
}

Compared steady(int rounds, Calls ours, Calls rival) {
  load("calls=1");
  await();
  // The entry becomes one jump a moment later.
  const timespec moment{0, 200'000'000};
  nanosleep(&moment, nullptr);
  return per_call(rounds, ours, rival);
}
Compared steady_leaf(int rounds) {
  return steady(rounds, bench_lp_call_leaf, bench_lp_call_leaf_plain);
}
Compared steady_prepared(int rounds) {
  return steady(rounds, bench_lp_call_prepared, bench_lp_call_prepared_plain);
}

Compared steady_plt(int rounds) {
  return steady(rounds, bench_lp_call_plt, bench_lp_call_plt_plain);
}

// Writes into our own code, which nobody executes yet.
void write_code(unsigned char* at, const std::vector<unsigned char>& bytes) {
  const int memory = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
  const bool written = pwrite(memory, bytes.data(), bytes.size(), reinterpret_cast<off_t>(at)) ==
                       static_cast<ssize_t>(bytes.size());
  close(memory);
  if (!written) throw std::runtime_error("cannot write to our own code");
}
void add_rel32(std::vector<unsigned char>& code, const unsigned char* at, const unsigned char* to) {
  const auto distance = static_cast<std::int32_t>(to - (at + code.size() + 4));
  const auto* bytes = reinterpret_cast<const unsigned char*>(&distance);
  code.insert(code.end(), bytes, bytes + 4);
}
void write_jump(unsigned char* at, const unsigned char* to) {
  std::vector<unsigned char> code{0xe9};
  add_rel32(code, at, to);
  write_code(at, code);
}

const unsigned char* jump_target(const unsigned char* jump, std::size_t opcode_size) {
  std::int32_t distance;
  std::memcpy(&distance, jump + opcode_size, sizeof distance);
  return jump + opcode_size + sizeof distance + distance;
}

// A word of the thread's is compared, and is what it is compared with.
void write_gate_by_hand(const unsigned char* target) {
  const auto own =
      static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(__builtin_thread_pointer()));
  std::vector<unsigned char> gate{0x64, 0x81, 0x3c, 0x25, 0, 0, 0, 0};  // cmpl $own, %fs:0
  const auto* bytes = reinterpret_cast<const unsigned char*>(&own);
  gate.insert(gate.end(), bytes, bytes + 4);
  gate.insert(gate.end(), {0x0f, 0x84});  // je
  add_rel32(gate, bench_lp_hand_gate, target);
  write_code(bench_lp_hand_gate, gate);
  write_jump(bench_lp_by_hand_gate, bench_lp_hand_gate);
}

// To where the gate leads a thread that has changed over.
void write_gate_as_ours() {
  const unsigned char* gate = jump_target(bench_lp_leaf, 1);
  constexpr std::size_t compare_size = 12;
  if (bench_lp_leaf[0] != 0xe9 || gate[compare_size] != 0x0f || gate[compare_size + 1] != 0x84) {
    throw std::runtime_error("the entry leads to no gate that is a compare and a jump");
  }
  write_gate_by_hand(jump_target(gate + compare_size, 2));
}

// The patched function's entry leads there by one jump: by hand it cannot be less.
void write_by_hand() {
  load("calls=1");
  await();
  const timespec moment{0, 200'000'000};
  nanosleep(&moment, nullptr);
  if (bench_lp_leaf[0] != 0xe9) throw std::runtime_error("the patched entry is no direct jump");
  const unsigned char* target = jump_target(bench_lp_leaf, 1);
  write_jump(bench_lp_by_hand, target);
  write_gate_by_hand(target);
  std::vector<unsigned char> rival{0xff, 0x25, 0, 0, 0, 0};  // jmp *0(%rip)
  const auto* address = reinterpret_cast<const unsigned char*>(&target);
  rival.insert(rival.end(), address, address + sizeof target);
  rival.insert(rival.end(), {0xeb, 0xf0});  // the entry: back to the front
  write_code(bench_lp_by_rival_pad, rival);
}
Compared floor_steady(int rounds) {
  write_by_hand();
  return per_call(rounds, bench_lp_call_by_hand, bench_lp_call_leaf_plain);
}
Compared floor_transition(int rounds) {
  write_by_hand();
  return per_call(rounds, bench_lp_call_by_hand_gate, bench_lp_call_leaf_plain);
}
Compared over_floor(int rounds) {
  write_by_hand();
  return per_call(rounds, bench_lp_call_leaf, bench_lp_call_by_hand);
}
Compared rival_steady(int rounds) {
  write_by_hand();
  return per_call(rounds, bench_lp_call_by_rival, bench_lp_call_leaf_plain);
}
Compared over_rival(int rounds) {
  write_by_hand();
  return per_call(rounds, bench_lp_call_leaf, bench_lp_call_by_rival);
}

// While a thread sleeps in an old version.
Compared in_transition(int rounds, Calls ours, Calls rival, void (*before)() = nullptr) {
  g_held.store(1);
  std::thread sleeper(bench_lp_sleeper);
  while (g_inside.load() == 0) sched_yield();
  load("calls=1 sleeper=1");
  ours(1000);
  if (before != nullptr) before();
  const Compared compared = per_call(rounds, ours, rival);
  const bool was_held = molt_patch_wait(0) != 0;
  g_held.store(0);
  molt::futex_wake_all(g_held);
  sleeper.join();
  if (!was_held) throw std::runtime_error("the transition was over before it was measured");
  return compared;
}
Compared transition_leaf(int rounds) {
  return in_transition(rounds, bench_lp_call_leaf, bench_lp_call_leaf_plain);
}
Compared over_floor_transition(int rounds) {
  return in_transition(rounds, bench_lp_call_leaf, bench_lp_call_by_hand_gate, write_gate_as_ours);
}
Compared transition_prepared(int rounds) {
  return in_transition(rounds, bench_lp_call_prepared, bench_lp_call_prepared_plain);
}

void figure(const char* name, Goal goal, const Options& options, Report& report,
            const char* rival = "unpatched") {
  const Compared c = measure_in_processes(name, options);
  report.add({name, c.ours, "ns", rival, c.rival, c.ratio, goal});
}
void calls(const Options& options, Report& report) {
  const Goal steady = Goal::ratio_at_most(1.05), moving = Goal::ratio_at_most(1.3);
  figure("livepatch.call.unprepared", steady, options, report);
  figure("livepatch.call.prepared", steady, options, report);
  // One more taken branch where there were four already: fetching them is what the loop waits for.
  figure("livepatch.call.plt", Goal::info(), options, report);
  figure("livepatch.call.floor", Goal::info(), options, report);
  figure("livepatch.call.over_floor", steady, options, report, "by hand");
  figure("livepatch.call.rival", Goal::info(), options, report);
  // The goals are 1.05 of an unpatched call where rivals take 1.21.
  figure("livepatch.call.over_rival", Goal::ratio_at_most(1.05 / 1.21), options, report,
         "libpulp's way");
  figure("livepatch.call.floor.transition", Goal::info(), options, report);
  figure("livepatch.call.over_floor.transition", steady, options, report, "by hand");
  figure("livepatch.call.unprepared.transition", moving, options, report);
  figure("livepatch.call.prepared.transition", moving, options, report);
}

// --- threads that sleep ---------------------------------------------------------------------------------

class Sleepers {
 public:
  explicit Sleepers(int count) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64 * 1024);
    if (pipe(pipe_) != 0 || (epoll_ = epoll_create1(0)) < 0) throw std::runtime_error("no pipe");
    epoll_event event{EPOLLIN, {}};
    epoll_ctl(epoll_, EPOLL_CTL_ADD, pipe_[0], &event);
    sem_init(&semaphore_, 0, 0);
    threads_.resize(static_cast<std::size_t>(count));
    for (pthread_t& thread : threads_) {
      if (pthread_create(&thread, &attributes, run, this) != 0) {
        throw std::runtime_error("cannot start the threads");
      }
    }
    pthread_attr_destroy(&attributes);
    while (started_.load() != static_cast<std::uint32_t>(count)) sched_yield();
    const timespec moment{0, 50'000'000};
    nanosleep(&moment, nullptr);
  }
  ~Sleepers() {
    over_.store(1);
    molt::futex_wake_all(over_);
    for (std::size_t i = 0; i < threads_.size(); ++i) sem_post(&semaphore_);
    (void)!write(pipe_[1], "x", 1);
    for (pthread_t thread : threads_) pthread_join(thread, nullptr);
    close(pipe_[0]);
    close(pipe_[1]);
    close(epoll_);
  }
  // Who came back although nobody had asked for it.
  unsigned disturbed() const { return disturbed_.load(); }

 private:
  static void* run(void* given) {
    auto* self = static_cast<Sleepers*>(given);
    const unsigned kind = self->started_.fetch_add(1) % 5;
    bench_lp_sleeper();  // through the function, once: nobody holds it now
    pollfd fd{self->pipe_[0], POLLIN, 0};
    epoll_event event;
    constexpr int forever_ms = 600'000;
    switch (kind) {
      case 0:
        while (self->over_.load() == 0) {
          syscall(SYS_futex, &self->over_, FUTEX_WAIT_PRIVATE, 0, nullptr, nullptr, 0);
          self->note();
        }
        break;
      case 1:
        poll(&fd, 1, forever_ms);
        break;
      case 2:
        epoll_wait(self->epoll_, &event, 1, forever_ms);
        break;
      case 3:
        sem_wait(&self->semaphore_);
        break;
      default: {
        const timespec long_time{600, 0};
        while (self->over_.load() == 0) {
          timespec until;
          clock_gettime(CLOCK_REALTIME, &until);
          until.tv_sec += long_time.tv_sec;
          if (sem_timedwait(&self->semaphore_, &until) == 0) break;
          self->note();
        }
      }
    }
    self->note();
    return nullptr;
  }
  void note() {
    if (over_.load() == 0) disturbed_.fetch_add(1);
  }
  std::vector<pthread_t> threads_;
  std::atomic<std::uint32_t> started_{0}, over_{0}, disturbed_{0};
  int pipe_[2] = {}, epoll_ = -1;
  sem_t semaphore_;
};

// The longest gap between two looks at the clock, since asked last, in which nobody took the processor from the
// thread. A gap in which somebody did says nothing of a patch: on a busy machine every window has some, of
// a time slice each. They are counted, so that a patch that brought them about would show.
class ClockReader {
 public:
  ClockReader() : thread_([this] { run(); }) {}
  ~ClockReader() {
    over_.store(true);
    thread_.join();
  }
  // A gap that has begun ends first.
  double longest_us() {
    const std::uint64_t seen = looks_.load();
    while (looks_.load() - seen < 2) sched_yield();
    return static_cast<double>(longest_.exchange(0)) / 1000;
  }
  long switches() const { return switches_.load(); }

 private:
  static rusage usage() {
    rusage usage{};
    getrusage(RUSAGE_THREAD, &usage);
    return usage;
  }
  void run() {
    constexpr std::int64_t no_switch_is_shorter_ns = 1000;
    Pinned pinned(cpus().front());
    rusage seen = usage();
    std::int64_t before = now_ns();
    while (!over_.load(std::memory_order_relaxed)) {
      const std::int64_t now = now_ns(), gap = now - before;
      before = now;
      looks_.store(looks_.load(std::memory_order_relaxed) + 1, std::memory_order_release);
      if (gap < no_switch_is_shorter_ns) continue;
      const rusage use = usage();
      // Who is stopped, or waits for a lock of the kernel's, gives its processor up.
      if (use.ru_nivcsw == seen.ru_nivcsw || use.ru_nvcsw != seen.ru_nvcsw) {
        if (gap > longest_.load(std::memory_order_relaxed)) longest_.store(gap);
      } else {
        switches_.fetch_add(use.ru_nivcsw - seen.ru_nivcsw);
      }
      seen = use;
      before = now_ns();
    }
  }
  std::atomic<bool> over_{false};
  std::atomic<std::int64_t> longest_{0};
  std::atomic<long> switches_{0};
  std::atomic<std::uint64_t> looks_{0};
  std::thread thread_;
};

// Of all windows of one kind.
struct Windows {
  std::vector<double> longest_us;
  long switches = 0;
  double took_ms = 0;
};

// What every tool does that changes code from outside: another process stops all threads, and lets them go.
void stop_all_once() {
  std::vector<pid_t> threads;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
    threads.push_back(static_cast<pid_t>(std::stol(entry.path().filename())));
  }
  int go[2];
  if (pipe(go) != 0) throw std::runtime_error("no pipe");
  const pid_t child = fork();
  if (child == 0) {
    char word;
    if (read(go[0], &word, 1) != 1) _exit(1);
    for (const pid_t tid : threads) ptrace(PTRACE_SEIZE, tid, nullptr, nullptr);
    for (const pid_t tid : threads) ptrace(PTRACE_INTERRUPT, tid, nullptr, nullptr);
    bool all = true;
    for (const pid_t tid : threads) all = waitpid(tid, nullptr, __WALL) == tid && all;
    for (const pid_t tid : threads) ptrace(PTRACE_DETACH, tid, nullptr, nullptr);
    _exit(all ? 0 : 1);
  }
  prctl(PR_SET_PTRACER, child, 0, 0, 0);
  const bool went = write(go[1], "x", 1) == 1;
  int status = -1;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  close(go[0]);
  close(go[1]);
  if (child < 0 || !went || status != 0) throw std::runtime_error("threads cannot be stopped");
}

// Windows with a patch that comes and goes, and as long ones without, in turn; of each its longest gap.
void measure_pause(int count, const Options& options, Report& report) {
  Pinned pinned;
  load("calls=1");
  revert();
  unload();
  Sleepers sleepers(count);
  ClockReader clock;
  Windows with, without;
  const auto window = [&](Windows& windows, const auto& pass) {
    clock.longest_us();
    const long switches = clock.switches();
    const std::int64_t from = now_ns();
    pass();
    windows.took_ms += static_cast<double>(now_ns() - from) / 1'000'000;
    windows.longest_us.push_back(clock.longest_us());
    windows.switches += clock.switches() - switches;
  };
  const int rounds = options.quick ? 15 : 60;
  for (int i = 0; i < rounds; ++i) {
    const std::int64_t from = now_ns();
    window(with, [] {
      load("calls=1");
      await();
      revert();
    });
    const std::int64_t took = now_ns() - from;
    unload();
    const timespec as_long{took / 1'000'000'000, took % 1'000'000'000};
    window(without, [&] { nanosleep(&as_long, nullptr); });
  }
  const std::string name = "livepatch.pause." + std::to_string(count);
  Windows stopping;
  for (int i = 0; i < rounds / 4; ++i) window(stopping, stop_all_once);
  const double typical = median(without.longest_us);
  report.add({.name = name,
              .value = median(with.longest_us) - typical,
              .unit = "us",
              .rival = "quiet",
              .rival_value = typical,
              .ratio = 0,
              .goal = Goal::value_at_most(50, "us")});
  // What would be seen here of a pause.
  report.add({.name = name + ".stopping",
              .value = median(stopping.longest_us) - typical,
              .unit = "us",
              .rival = "quiet",
              .rival_value = typical,
              .ratio = 0,
              .goal = Goal::info()});
  report.add({.name = name + ".longest",
              .value = *std::ranges::max_element(with.longest_us),
              .unit = "us",
              .rival = "quiet",
              .rival_value = *std::ranges::max_element(without.longest_us),
              .ratio = 0,
              .goal = Goal::info()});
  report.add({.name = name + ".switches",
              .value = static_cast<double>(with.switches) / with.took_ms,
              .unit = "/ms",
              .rival = "quiet",
              .rival_value = static_cast<double>(without.switches) / without.took_ms,
              .ratio = 0,
              .goal = Goal::info()});
}
void pauses(const Options& options, Report& report) {
  for (int count : {1, 10, 100, 500, 1000}) measure_pause(count, options, report);
}

double once(const char* args) {
  const std::int64_t from = now_ns();
  load(args);
  await();
  return static_cast<double>(now_ns() - from) / 1'000'000;
}

// What has to be opened to see where a thread sleeps and that it has not run, opened and read by hand, in a
// descriptor table of its own; the kernel makes an inode and a name for each.
double open_by_hand() {
  double took = 0;
  std::thread([&] {
    if (unshare(CLONE_FILES) != 0) return;
    const int directory = open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const std::int64_t from = now_ns();
    std::vector<std::string> threads;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
      threads.push_back(entry.path().filename());
    }
    char text[512];
    for (const std::string& thread : threads) {
      for (const char* file : {"/schedstat", "/syscall"}) {
        const int fd = openat(directory, (thread + file).c_str(), O_RDONLY | O_CLOEXEC);
        if (fd < 0 || pread(fd, text, sizeof text, 0) <= 0) return;
      }
    }
    took = static_cast<double>(now_ns() - from) / 1'000'000;
  }).join();
  if (took == 0) throw std::runtime_error("the threads' files cannot be opened");
  return took;
}

// In a process of its own: what is done once a process is in it.
Compared first_of_1000(int) {
  Sleepers sleepers(1000);
  const double ours = once("sleeper=1");
  return {ours, 0, 0, 0};
}
// Again in one of its own: the names that the kernel has made are kept.
Compared opened_of_1000(int) {
  Sleepers sleepers(1000);
  return {open_by_hand(), 0, 0, 0};
}

// While the sleepers are there.
Compared later_of(int rounds, const Sleepers&) {
  once("sleeper=1");
  std::vector<double> later, cpu;
  for (int i = 0; i < rounds; ++i) {
    revert();
    unload();
    const std::int64_t from = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    later.push_back(once("sleeper=1"));
    // The same as work: what other programs do does not count.
    cpu.push_back(static_cast<double>(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - from) / 1'000'000);
  }
  revert();
  unload();
  return {median(later), median(cpu), 0, 0};
}
Compared later_of_1000(int rounds) {
  Sleepers sleepers(1000);
  return later_of(rounds, sleepers);
}

void completions(const Options& options, Report& report) {
  const Compared first = measure_in_processes("livepatch.complete.1000.first", options);
  const Compared opened = measure_in_processes("livepatch.complete.1000.opened", options);
  const Compared later = measure_in_processes("livepatch.complete.1000.later", options);
  report.add({.name = "livepatch.complete.1000.first",
              .value = first.ours,
              .unit = "ms",
              .rival = "two files each",
              .rival_value = opened.ours,
              .ratio = 0,
              .goal = Goal::value_at_most(30, "ms")});
  report.add({.name = "livepatch.complete.1000.later",
              .value = later.ours,
              .unit = "ms",
              .rival = "",
              .goal = Goal::value_at_most(5, "ms")});
  report.add({.name = "livepatch.complete.1000.cpu",
              .value = later.rival,
              .unit = "ms",
              .rival = "",
              .goal = Goal::info()});
  {
    Sleepers sleepers(1000);
    static_cast<void>(later_of(options.quick ? 5 : 20, sleepers));
    report.add({.name = "livepatch.disturbed",
                .value = static_cast<double>(sleepers.disturbed()),
                .unit = "",
                .rival = "",
                .goal = Goal::value_is_zero()});
  }
  std::atomic<bool> over{false};
  std::vector<std::thread> busy;
  for (int i = 0; i < 8; ++i) {
    busy.emplace_back([&] {
      for (long n = 0; !over.load(std::memory_order_relaxed);) n = bench_lp_busy(n);
    });
  }
  std::vector<double> times;
  const int rounds = options.quick ? 5 : 20;
  for (int i = 0; i < rounds; ++i) {
    times.push_back(once("busy=1"));
    revert();
    unload();
  }
  over.store(true);
  for (std::thread& thread : busy) thread.join();
  report.add({.name = "livepatch.complete.busy8",
              .value = median(times),
              .unit = "ms",
              .rival = "",
              .goal = Goal::value_at_most(50, "ms")});
}

}  // namespace

std::vector<Figure> livepatch_figures() {
  return {{"livepatch.call.unprepared", steady_leaf},
          {"livepatch.call.prepared", steady_prepared},
          {"livepatch.call.plt", steady_plt},
          {"livepatch.call.floor", floor_steady},
          {"livepatch.call.over_floor", over_floor},
          {"livepatch.call.rival", rival_steady},
          {"livepatch.call.over_rival", over_rival},
          {"livepatch.call.floor.transition", floor_transition},
          {"livepatch.complete.1000.first", first_of_1000},
          {"livepatch.complete.1000.opened", opened_of_1000},
          {"livepatch.complete.1000.later", later_of_1000},
          {"livepatch.call.over_floor.transition", over_floor_transition},
          {"livepatch.call.unprepared.transition", transition_leaf},
          {"livepatch.call.prepared.transition", transition_prepared}};
}

std::vector<Bench> livepatch_benches() {
  return {{"livepatch.call", "a call of a function that was patched live", calls},
          {"livepatch.pause", "the longest pause while a patch comes and goes", pauses},
          {"livepatch.complete", "how long a transition takes", completions}};
}

}  // namespace bench
