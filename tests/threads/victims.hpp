// victims.hpp - threads that tests look at, and code for them to be in.
#pragma once

#include <gtest/gtest.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <thread>

#include "base/futex.hpp"
#include "threads/residency.hpp"

namespace victims {

using molt::threads::RangeSet;

// A page of code outside of every library: entry() calls a function and returns what it returned. A
// thread that is in that function has the page on its stack; one that has come back has not.
class Code {
 public:
  Code() {
    page_ =
        mmap(nullptr, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    // sub $8,%rsp; mov %rdi,%rax; mov %rsi,%rdi; call *%rax; add $8,%rsp; ret
    const unsigned char call[] = {0x48, 0x83, 0xec, 0x08, 0x48, 0x89, 0xf8, 0x48, 0x89,
                                  0xf7, 0xff, 0xd0, 0x48, 0x83, 0xc4, 0x08, 0xc3};
    std::memcpy(page_, call, sizeof call);
    // movl $1,(%rsi); 1: cmpl $0,(%rdi); je 1b; ret
    const unsigned char spin[] = {0xc7, 0x06, 0x01, 0, 0, 0, 0x83, 0x3f, 0x00, 0x74, 0xfb, 0xc3};
    std::memcpy(static_cast<char*>(page_) + 0x100, spin, sizeof spin);
    // mov (%rdi),%rax; mov 8(%rdi),%rdi; sub $8,%rsp; call *%rax; add $8,%rsp; ret
    const unsigned char start[] = {0x48, 0x8b, 0x07, 0x48, 0x8b, 0x7f, 0x08, 0x48, 0x83,
                                   0xec, 0x08, 0xff, 0xd0, 0x48, 0x83, 0xc4, 0x08, 0xc3};
    std::memcpy(static_cast<char*>(page_) + stays, start, sizeof start);
    // The same, but: jmp *%rax
    const unsigned char jump[] = {0x48, 0x8b, 0x07, 0x48, 0x8b, 0x7f, 0x08, 0xff, 0xe0};
    std::memcpy(static_cast<char*>(page_) + leaves, jump, sizeof jump);
  }
  ~Code() { munmap(page_, 4096); }
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;

  // f(argument), called from the page.
  void call(void (*f)(void*), void* argument) const {
    reinterpret_cast<void (*)(void (*)(void*), void*)>(page_)(f, argument);
  }
  // Runs in the page, after it has said so, until `stop` is not 0.
  void spin(std::atomic<std::uint32_t>& stop, std::atomic<std::uint32_t>& inside) const {
    reinterpret_cast<void (*)(void*, void*)>(static_cast<char*>(page_) + 0x100)(&stop, &inside);
  }
  // Starts a thread at a routine in the page, which calls the work's, and returns to the page, or goes on
  // there with nothing of the page on its stack.
  struct Work {
    void* (*run)(void*);
    void* argument;
  };
  enum Routine : std::size_t { stays = 0x200, leaves = 0x300 };
  void start_thread(Routine at, Work& work) const {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    const auto routine = reinterpret_cast<void* (*)(void*)>(static_cast<char*>(page_) + at);
    while (pthread_create(&thread, &attributes, routine, &work) != 0) sched_yield();
    pthread_attr_destroy(&attributes);
  }
  std::uintptr_t begin() const { return reinterpret_cast<std::uintptr_t>(page_); }
  std::uintptr_t end() const { return begin() + 4096; }
  RangeSet range() const {
    RangeSet set;
    set.add(begin(), end());
    return set;
  }

 private:
  void* page_;
};

// Waits until a condition holds; the test's time-out is the only one.
template <class F>
void until(F&& condition) {
  while (!condition()) sched_yield();
}

// A gate that threads sleep at.
class Gate {
 public:
  void wait() {
    waiting_.fetch_add(1, std::memory_order_seq_cst);
    while (word_.load(std::memory_order_acquire) == 0) molt::futex_wait(word_, 0);
  }
  void open() {
    word_.store(1, std::memory_order_release);
    molt::futex_wake_all(word_);
  }
  int waiting() const { return waiting_.load(std::memory_order_seq_cst); }
  static void wait_at(void* gate) { static_cast<Gate*>(gate)->wait(); }

 private:
  std::atomic<std::uint32_t> word_{0};
  std::atomic<int> waiting_{0};
};

// A thread of the test that says its number, and ends when its function does.
class Victim {
 public:
  explicit Victim(std::function<void()> f) {
    thread_ = std::thread([this, f = std::move(f)] {
      pthread_setname_np(pthread_self(), "victim");
      tid_.store(gettid(), std::memory_order_release);
      f();
    });
    until([&] { return tid() != 0; });
  }
  ~Victim() { thread_.join(); }
  int tid() const { return tid_.load(std::memory_order_acquire); }

 private:
  std::atomic<int> tid_{0};
  std::thread thread_;
};

// Runs f in a forked child, and says what it answered; 255 if it died.
inline int in_child(const std::function<int()>& f) {
  const pid_t child = fork();
  if (child == 0) _exit(f());
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

// Whether the kernel says that the thread is asleep in that system call.
inline bool sleeps_in(int tid, long number) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
  FILE* file = std::fopen(path, "re");
  if (file == nullptr) return false;
  long found = -2;
  if (std::fscanf(file, "%ld", &found) != 1) found = -2;
  std::fclose(file);
  return found == number;
}

}  // namespace victims
