// Unwinding a sleeping thread by call frame information: live slots, stale words, and stopping early.

#include "unwind/walk.hpp"

#include <alloca.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <string>
#include <thread>

namespace {

using namespace molt;
using unwind::Frame;
using unwind::Walk;
using unwind::Word;

// The thread that is looked at says where its return addresses and its stale words lie.
struct Stack {
  std::atomic<int> tid{0};
  std::atomic<bool> stop{false};
  std::uintptr_t inner_slot = 0, outer_slot = 0;
  std::uintptr_t stale = 0;
};

bool sleeps(int tid) {
  char path[64], text[64] = "";
  std::snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
  FILE* file = std::fopen(path, "re");
  if (file == nullptr) return false;
  const bool read = std::fgets(text, sizeof text, file) != nullptr;
  std::fclose(file);
  return read && std::string(text).starts_with(std::to_string(SYS_pause));
}

[[gnu::noinline]] void sleep_until_told(Stack& stack) {
  stack.tid.store(gettid(), std::memory_order_release);
  while (!stack.stop.load(std::memory_order_acquire)) pause();
}

[[gnu::noinline]] void inner(Stack& stack) {
  stack.inner_slot = reinterpret_cast<std::uintptr_t>(__builtin_dwarf_cfa()) - 8;
  // As an earlier frame would have left it.
  volatile std::uintptr_t left_over[8];
  for (auto& word : left_over) word = reinterpret_cast<std::uintptr_t>(&inner) + 5;
  stack.stale = reinterpret_cast<std::uintptr_t>(&left_over[4]);
  sleep_until_told(stack);
  asm volatile("" ::"r"(left_over) : "memory");
}

[[gnu::noinline]] void outer(Stack& stack) {
  stack.outer_slot = reinterpret_cast<std::uintptr_t>(__builtin_dwarf_cfa()) - 8;
  inner(stack);
  asm volatile("");
}

// A frame that hangs on rbp, and sleeps by itself: nobody has saved rbp where it could be read.
[[gnu::noinline]] void hangs_on_a_register(Stack& stack, std::size_t size) {
  auto* room = static_cast<volatile char*>(alloca(size));
  room[0] = 1;
  stack.outer_slot = reinterpret_cast<std::uintptr_t>(__builtin_dwarf_cfa()) - 8;
  stack.tid.store(gettid(), std::memory_order_release);
  while (!stack.stop.load(std::memory_order_acquire)) {
    long result;
    asm volatile("syscall" : "=a"(result) : "0"(SYS_pause) : "rcx", "r11", "memory");
  }
  room[1] = room[0];
}

void on_signal(int) {}

class Asleep {
 public:
  explicit Asleep(void (*f)(Stack&)) {
    struct sigaction action {};
    action.sa_handler = on_signal;
    sigaction(SIGUSR1, &action, nullptr);
    thread_ = std::thread([this, f] { f(stack); });
    while (stack.tid.load(std::memory_order_acquire) == 0 || !sleeps(stack.tid)) sched_yield();
  }
  ~Asleep() {
    stack.stop.store(true, std::memory_order_release);
    // It may have looked at `stop` just before it fell asleep.
    while (sleeps(stack.tid)) tgkill(getpid(), stack.tid, SIGUSR1);
    thread_.join();
  }
  Stack stack;

 private:
  std::thread thread_;
};

std::string text(const Walk& walk) {
  std::string all;
  for (const Frame& f : walk.frames) {
    char line[256];
    std::snprintf(line, sizeof line, "%#lx %s+%#lx cfa %#lx\n", static_cast<unsigned long>(f.pc),
                  f.function.c_str(), static_cast<unsigned long>(f.offset),
                  static_cast<unsigned long>(f.cfa));
    all += line;
  }
  return all + walk.stopped;
}

TEST(Walk, TellsLiveFromStale) {
  Asleep asleep(outer);
  auto walk = unwind::walk(getpid(), asleep.stack.tid);
  ASSERT_TRUE(walk) << walk.error().detail;
  EXPECT_TRUE(walk->complete) << text(*walk);
  EXPECT_EQ(walk->judge(asleep.stack.inner_slot), Word::live) << text(*walk);
  EXPECT_EQ(walk->judge(asleep.stack.outer_slot), Word::live) << text(*walk);
  EXPECT_EQ(walk->judge(asleep.stack.stale), Word::stale) << text(*walk);
  EXPECT_EQ(walk->judge(walk->sp - 64), Word::stale);
  // The names, innermost first.
  std::vector<std::string> wanted = {"sleep_until_told", "inner", "outer"};
  std::size_t next = 0;
  for (const Frame& f : walk->frames) {
    if (next < wanted.size() && f.function.find(wanted[next]) != std::string::npos) ++next;
  }
  EXPECT_EQ(next, wanted.size()) << text(*walk);
}

// U1: where a register is missing nothing is guessed, and what lies beyond stays open.
TEST(Walk, StopsEarlyRatherThanGuess) {
  Asleep asleep([](Stack& stack) { hangs_on_a_register(stack, 300); });
  auto walk = unwind::walk(getpid(), asleep.stack.tid);
  ASSERT_TRUE(walk) << walk.error().detail;
  EXPECT_FALSE(walk->complete) << text(*walk);
  EXPECT_NE(walk->stopped.find("register"), std::string::npos) << walk->stopped;
  EXPECT_EQ(walk->judge(asleep.stack.outer_slot), Word::open) << text(*walk);
}

// Another process, many threads, one opening.
TEST(Walk, AnotherProcess) {
  int pipes[2];
  ASSERT_EQ(pipe(pipes), 0);
  const pid_t child = fork();
  if (child == 0) {
    Stack stack;
    std::thread thread([&] { outer(stack); });
    while (stack.tid.load() == 0 || !sleeps(stack.tid)) sched_yield();
    const std::uintptr_t words[] = {static_cast<std::uintptr_t>(stack.tid), stack.outer_slot,
                                    stack.stale};
    if (write(pipes[1], words, sizeof words) != sizeof words) _exit(1);
    pause();
    _exit(0);
  }
  std::uintptr_t words[3];
  ASSERT_EQ(read(pipes[0], words, sizeof words), static_cast<ssize_t>(sizeof words));
  auto process = unwind::Process::open(child);
  ASSERT_TRUE(process) << process.error().detail;
  for (int i = 0; i < 3; ++i) {
    auto walk = process->walk(static_cast<pid_t>(words[0]));
    ASSERT_TRUE(walk) << walk.error().detail;
    EXPECT_TRUE(walk->complete) << text(*walk);
    EXPECT_EQ(walk->judge(words[1]), Word::live) << text(*walk);
    EXPECT_EQ(walk->judge(words[2]), Word::stale) << text(*walk);
  }
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  close(pipes[0]);
  close(pipes[1]);
}

TEST(Walk, Refuses) {
  auto none = unwind::walk(getpid(), 1 << 22);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ESRCH);
  EXPECT_FALSE(unwind::walk(1 << 22, 1 << 22));
  std::atomic<bool> stop{false};
  std::atomic<int> tid{0};
  std::thread runner([&] {
    tid = gettid();
    while (!stop.load(std::memory_order_relaxed)) {
    }
  });
  while (tid == 0) sched_yield();
  auto running = unwind::walk(getpid(), tid);
  stop = true;
  runner.join();
  ASSERT_FALSE(running);
  EXPECT_EQ(running.error().code, EAGAIN);
}

}  // namespace
