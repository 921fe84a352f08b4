// hazards: threads that are in the middle of what makes live patching hard, all the time. Says "ready";
// for each line of its input, the version that each function has now; at its end "ok", if nobody was
// disturbed and each has gone on.
#include "hazards.hpp"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <iterator>

static thread_local long counter = 0;
static std::atomic<long> traps{0};

long hz_count() { return ++counter; }
long hz_recursion(int depth) {
  const long below = depth > 0 ? hz_recursion(depth - 1) : 1;
  asm volatile("");
  return below == 1 ? 1 : -1;
}
long hz_blocked(int fd) {
  char c = 0;
  const bool good = read(fd, &c, 1) == 1 && c == 'x';
  asm volatile("");
  return good ? 1 : -1;
}
long hz_red_zone(long seed) {
  volatile long below[14];
  for (long i = 0; i < 14; ++i) below[i] = seed + i;
  long sum = 0;
  for (long i = 0; i < 14; ++i) sum += below[i];
  return sum == 14 * seed + 91 ? 1 : -1;
}
long hz_throws() { throw 1; }
long hz_cancelled() {
  pthread_testcancel();
  asm volatile("");
  return 1;
}
long hz_thread_local() {
  const long first = hz_count();
  asm volatile("");
  return hz_count() == first + 1 ? 1 : -1;
}
long hz_loader() {
  return dlsym(RTLD_DEFAULT, "hz_count") == reinterpret_cast<void*>(hz_count) ? 1 : -1;
}
long hz_allocates() {
  void* volatile some = std::malloc(static_cast<std::size_t>(1000 + hz_count() % 100000));
  std::free(some);
  return some != nullptr ? 1 : -1;
}
long hz_timed() {
  const timespec moment{0, 200'000};
  // tidy: sleep-ok whether it is interrupted is the question
  return nanosleep(&moment, nullptr) == 0 ? 1 : -1;
}
long hz_contract() {
  const long first = hz_dozen();
  const timespec moment{0, 100'000};
  nanosleep(&moment, nullptr);  // tidy: sleep-ok so that patches come in the middle
  const long second = hz_hundred();
  const long third = hz_dozen();
  return first == 1 && second == 1 && third == 1 ? 1 : -1;
}
asm(R"(
        .pushsection .text.page, "ax", @progbits
        .balign 4096
        .skip 4096 - 3, 0x90
        .globl hz_page
        .type hz_page, @function
hz_page:
        pushq %rbp
        movq %rsp, %rbp
        movl $1, %eax
        popq %rbp
        ret
        .size hz_page, . - hz_page
        .balign 4096
        .popsection
)");

namespace {

int in[2];  // hz_blocked reads here
std::atomic<bool> stop{false};
std::atomic<long> wrong{0};

long caught() {
  try {
    hz_throws();
  } catch (int version) {
    return version;
  }
  return -1;
}

// A thread that is cancelled in the function, and cleans up.
long cancelled() {
  static thread_local std::atomic<long> cleaned;
  cleaned = 0;
  pthread_t thread;
  const auto run = [](void* word) -> void* {
    struct Cleanup {
      std::atomic<long>* at;
      ~Cleanup() { *at = 1; }
    } cleanup{static_cast<std::atomic<long>*>(word)};
    for (;;) hz_cancelled();
  };
  if (pthread_create(&thread, nullptr, run, &cleaned) != 0) return -1;
  pthread_cancel(thread);
  void* result = nullptr;
  pthread_join(thread, &result);
  return result == PTHREAD_CANCELED && cleaned == 1 ? hz_cancelled() : -1;
}

long blocked() { return hz_blocked(in[0]); }
long recursion() { return hz_recursion(20); }
long red_zone() { return hz_red_zone(7); }

struct Hazard {
  const char* name;
  long (*call)();
  std::atomic<long> rounds{0};
} hazards[] = {
    {"recursion", recursion}, {"blocked", blocked},        {"red_zone", red_zone},
    {"throws", caught},       {"cancelled", cancelled},    {"thread_local", hz_thread_local},
    {"loader", hz_loader},    {"allocates", hz_allocates}, {"timed", hz_timed},
    {"page", hz_page},        {"dozen", hz_dozen},         {"hundred", hz_hundred},
    {"contract", hz_contract}};

void* work(void* given) {
  auto& hazard = *static_cast<Hazard*>(given);
  while (!stop) {
    const long version = hazard.call();
    if (version != 1 && version != 2 && !stop) {
      ++wrong;
      std::fprintf(stderr, "%s: %ld, %s\n", hazard.name, version, std::strerror(errno));
    }
    ++hazard.rounds;
    const timespec moment{0, 50'000};
    nanosleep(&moment, nullptr);  // tidy: sleep-ok how often is the load, no wait for anything
  }
  return nullptr;
}

void* feed(void*) {
  while (!stop) {
    const timespec moment{0, 3'000'000};
    nanosleep(&moment, nullptr);  // tidy: sleep-ok so long hz_blocked shall be blocked
    if (write(in[1], "x", 1) != 1) ++wrong;
  }
  return nullptr;
}

}  // namespace

int main() {
  // A handler of the program's own: traps that are not Molt's are its business.
  struct sigaction action = {};
  action.sa_handler = [](int) { ++traps; };
  sigaction(SIGTRAP, &action, nullptr);
  if (pipe(in) != 0) return 1;
  pthread_t threads[std::size(hazards) + 1];
  for (std::size_t i = 0; i < std::size(hazards); ++i) {
    pthread_create(&threads[i], nullptr, work, &hazards[i]);
  }
  pthread_create(&threads[std::size(hazards)], nullptr, feed, nullptr);
  std::puts("ready");
  std::fflush(stdout);
  char line[16];
  long raised = 0;
  while (std::fgets(line, sizeof line, stdin) != nullptr) {
    raise(SIGTRAP);
    ++raised;
    for (const Hazard& hazard : hazards) std::printf("%ld ", hazard.call());
    std::puts("");
    std::fflush(stdout);
  }
  stop = true;
  if (write(in[1], "xx", 2) != 2) ++wrong;
  for (pthread_t thread : threads) pthread_join(thread, nullptr);
  for (const Hazard& hazard : hazards) {
    if (hazard.rounds < 10) std::printf("%s: %ld rounds\n", hazard.name, hazard.rounds.load());
  }
  if (traps != raised) std::printf("%ld of %ld traps\n", traps.load(), raised);
  std::puts(wrong == 0 && traps == raised ? "ok" : "disturbed");
  return wrong == 0 ? 0 : 1;
}
