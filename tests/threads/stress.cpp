// stress - threads run through code that is made inaccessible whenever it is proven that nobody is in
// it. Whoever then comes back into it dies of it, and that is what is reported.
//
//     threads_stress SECONDS
//
// exit 0: nobody ran freed code. 1: VIOLATION. 2: the test itself did not work.
//
// The code is a page: a door that looks whether the page is open, and behind it functions that call
// the program's own, which sleep. The door is never freed, but counts as code that a thread must not
// be in (as a trampoline's text does): so nobody can be between the look and the call unseen. Which
// word on a thread's stack shows that it is inside changes while it is there, deep frames come and go,
// and one way to sleep keeps the only return address in a register.
//
// The proof is what is compiled in; the mutations leave out one of its parts each (CMakeLists.txt).

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <molt/molt.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "base/barrier.hpp"
#include "base/futex.hpp"
#include "threads/record.hpp"
#include "threads/residency.hpp"
#include "threads/self_proof.hpp"

using namespace molt;
using namespace molt::threads;

// door(&page, route, f, g): page.closed ? -1 : (page.routes + route)(f, g). A jump, so that the door is on
// no stack; and an offset, so that its caller holds no address of the page. Routes, on the page that is freed:
//   plain   f()
//   moving  f() with the return address at one end of a big frame, then g() with it at the other, the
//           first place wiped: a scan that mixes two moments sees neither
asm(R"(
  .pushsection .text
  .balign 16
  stress_door:
    cmpl $0, (%rdi)
    jne 1f
    mov 8(%rdi), %rax
    add %rsi, %rax
    mov %rdx, %rdi
    mov %rcx, %rsi
    jmp *%rax
  1: mov $-1, %eax
    ret
  stress_door_end:
  stress_routes:
  stress_plain:
    sub $8, %rsp
    call *%rdi
    xor %eax, %eax
    add $8, %rsp
    ret
  stress_moving:
    push %rbx
    mov %rsi, %rbx
    call *%rdi
    sub $0x600000, %rsp
    movq $0, 0x5ffff8(%rsp)
    call *%rbx
    xor %eax, %eax
    add $0x600000, %rsp
    pop %rbx
    ret
  stress_routes_end:
  /* sleep_until_freed() with the return address in a register: a call like any other to its caller */
  stress_sleep_without_return_address:
    pop %r8
    mov stress_freed@GOTPCREL(%rip), %rdi
    mov (%rdi), %edx
    mov $128, %esi
    lea -64(%rsp), %r10
    movq $0, (%r10)
    movq $100000000, 8(%r10)
    mov $202, %eax
    syscall
    push %r8
    ret
  .popsection
)");
extern "C" const char stress_door[], stress_door_end[], stress_routes[], stress_plain[],
    stress_moving[], stress_routes_end[];
extern "C" void stress_sleep_without_return_address();
// Changes, and wakes, when the page has been freed.
extern "C" std::atomic<std::uint32_t> stress_freed;
std::atomic<std::uint32_t> stress_freed{0};

namespace {

constexpr std::size_t page_bytes = 4096;
struct Page {
  std::atomic<std::uint32_t> closed{0};
  alignas(8) char* routes = nullptr;
};
Page g_page;
std::atomic<bool> g_stop{false};
char* g_door;

using Door = int (*)(const Page*, std::size_t, void (*)(), void (*)());

void nap(long ns) {
  const timespec t{0, ns};
  clock_nanosleep(CLOCK_MONOTONIC, 0, &t, nullptr);  // tidy: sleep-ok to sleep is the subject
}

thread_local std::minstd_rand t_random;

void sleep_shallow() { nap(1 + static_cast<long>(t_random() % 200'000)); }
// A scan that begins at its end takes a while to reach its beginning.
void sleep_deep() {
  volatile char room[0x600000];
  // What earlier frames have left there would give the thread away.
  std::memset(const_cast<char*>(room), 0, 0x10000);
  asm volatile("" ::"r"(room) : "memory");
  nap(1 + static_cast<long>(t_random() % 200'000));
  room[1] = room[0];
}
// One who was missed is there until the page is freed, however slow the machine; otherwise 100 ms.
void sleep_until_freed() {
  futex_wait(stress_freed, stress_freed.load(std::memory_order_relaxed), Deadline::in_ms(100));
}
void run_a_while() {
  for (int i = 0; i < 2000; ++i) asm volatile("");
}
// Passes a hook while it is inside, and goes on until it is missed, or for some rounds of a proof.
void pass_and_run() {
  const std::uint32_t freed = stress_freed.load(std::memory_order_relaxed);
  const Deadline end = Deadline::in_ms(3);
  while (!end.passed() && stress_freed.load(std::memory_order_relaxed) == freed) threads::pass();
}
void yield() { sched_yield(); }

std::size_t route(const char* symbol) { return static_cast<std::size_t>(symbol - stress_routes); }

void work(unsigned seed, std::atomic<std::uint64_t>& calls) {
  t_random.seed(seed);
  molt_frame_retract(molt_frame_extend());  // as whoever has called a hook
  while (!g_stop.load(std::memory_order_relaxed)) {
    std::size_t by = route(stress_plain);
    void (*f)() = sleep_shallow;
    void (*g)() = yield;
    switch (t_random() % 8) {
      case 0:
        f = stress_sleep_without_return_address;
        break;
      case 1:
        f = run_a_while;
        break;
      case 2:
        f = pass_and_run;
        break;
      case 3:
      case 4:
        break;
      default:
        by = route(stress_moving);
        f = sleep_deep;
        g = sleep_until_freed;
    }
    if (reinterpret_cast<Door>(g_door)(&g_page, by, f, g) == 0) {
      calls.fetch_add(1, std::memory_order_relaxed);
    } else if (t_random() % 2 == 0) {
      nap(20'000);
    }
    threads::pass();
  }
}

void on_fault(int, siginfo_t* info, void* given) {
  const auto pc =
      static_cast<std::uintptr_t>(static_cast<ucontext_t*>(given)->uc_mcontext.gregs[REG_RIP]);
  const auto at = reinterpret_cast<std::uintptr_t>(info->si_addr);
  const auto routes = reinterpret_cast<std::uintptr_t>(g_page.routes);
  static const char violation[] = "VIOLATION: a thread ran code that was proven empty\n";
  static const char other[] = "died of something else\n";
  const bool freed = at - routes < page_bytes || pc - routes < page_bytes;
  if (write(1, freed ? violation : other, freed ? sizeof violation - 1 : sizeof other - 1) < 0) {
    _exit(2);
  }
  _exit(freed ? 1 : 2);
}

char* map_code(const char* begin, const char* end) {
  void* page = mmap(nullptr, page_bytes, PROT_READ | PROT_WRITE | PROT_EXEC,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return nullptr;
  std::memcpy(page, begin, static_cast<std::size_t>(end - begin));
  return static_cast<char*>(page);
}

}  // namespace

int main(int argc, char** argv) {
  const int seconds = argc > 1 ? std::atoi(argv[1]) : 2;
  barrier_setup();
  setup();
  struct sigaction action {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, nullptr);
  g_door = map_code(stress_door, stress_door_end);
  g_page.routes = map_code(stress_routes, stress_routes_end);
  if (g_door == nullptr || g_page.routes == nullptr || !start_census()) return 2;

  std::atomic<std::uint64_t> calls{0};
  std::vector<std::thread> workers;
  for (unsigned i = 0; i < 4; ++i) workers.emplace_back(work, 17 * i + 1, std::ref(calls));

  RangeSet ranges;
  for (const char* code : {g_door, g_page.routes}) {
    const auto begin = reinterpret_cast<std::uintptr_t>(code);
    ranges.add(begin, begin + page_bytes);
  }
  std::minstd_rand random(3);
  std::uint64_t proofs = 0, sampled = 0, answered = 0, rounds = 0;
  const Deadline end = Deadline::in_ms(seconds * 1000);
  while (!end.passed()) {
    nap(1 + static_cast<long>(random() % 300'000));
    g_page.closed.store(1, std::memory_order_release);
    heavy_barrier();
    ProofOptions options;
    options.deadline = Deadline::in_ms(20'000);
    options.call_in = [](bool) {};
    auto proof = prove_out(ranges, options);
    if (!proof || !proof->out()) {
      std::printf("no proof: %s\n", proof ? proof->holders[0].reason : proof.error().detail);
      std::fflush(stdout);
      _exit(2);
    }
    ++proofs;
    sampled += proof->sampled;
    answered += proof->answered;
    rounds += proof->rounds;
    // "Freed": whoever is still in there, or comes back into it, faults.
    mprotect(g_page.routes, page_bytes, PROT_NONE);
    stress_freed.fetch_add(1, std::memory_order_release);
    futex_wake_all(stress_freed);
    nap(1'000'000);
    mprotect(g_page.routes, page_bytes, PROT_READ | PROT_EXEC);
    g_page.closed.store(0, std::memory_order_release);
  }
  g_stop.store(true, std::memory_order_relaxed);
  for (auto& worker : workers) worker.join();
  std::printf("%lu proofs in %lu rounds, %lu threads sampled, %lu answered, %lu calls\n",
              static_cast<unsigned long>(proofs), static_cast<unsigned long>(rounds),
              static_cast<unsigned long>(sampled), static_cast<unsigned long>(answered),
              static_cast<unsigned long>(calls.load()));
  return proofs > 0 && calls > 0 ? 0 : 2;
}
