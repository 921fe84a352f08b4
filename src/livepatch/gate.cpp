#include "livepatch/gate.hpp"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>

#include "base/barrier.hpp"
#include "base/futex.hpp"

extern "C" {
__thread std::uint32_t molt_gate_word
    __attribute__((tls_model("initial-exec"), visibility("hidden"))) = 0;
}

namespace molt::livepatch::gate {
namespace {

// Of a transition: its generation and the side of newcomers, as a decided word, and whether it is
// closed; 0: none is under way.
constexpr std::uint32_t closed_bit = switching_bit;
std::atomic<std::uint32_t> g_control{0};
std::atomic<std::uint32_t> g_last_generation{0};
std::atomic<SelfCheck> g_self_check{nullptr};
std::atomic<pid_t> g_agent_process{0};
std::atomic<unsigned> g_awaited{0};
std::atomic<void (*)()> g_all_done{nullptr};
// From the head of a thread's robust list to its word; the same in every thread of the C library.
std::ptrdiff_t g_from_robust_list = 0;

// What PENDING has cost the calling thread in this transition; a signal handler may lose some of it.
struct Asked {
  std::uint32_t generation;
  unsigned looks;    // since the agent asked last
  unsigned in_vain;  // how often it has asked and got no answer
  std::uintptr_t held_at;
};
__thread Asked t_asked __attribute__((tls_model("initial-exec"))) = {};

unsigned most_looks(const Asked& asked) {
  return asked.in_vain < patient_tries ? few_looks
                                       : few_looks << (asked.in_vain - patient_tries + 1);
}

std::uint32_t* own_word() { return &molt_gate_word; }

void* robust_list_of(int tid) {
  void* head = nullptr;
  std::size_t size = 0;
  return syscall(SYS_get_robust_list, tid, &head, &size) == 0 ? head : nullptr;
}

std::uint32_t load(const std::uint32_t* word) { return __atomic_load_n(word, __ATOMIC_SEQ_CST); }
bool swap(std::uint32_t* word, std::uint32_t from, std::uint32_t to) {
  return __atomic_compare_exchange_n(word, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

// What the kernel does to *word, atomically; wakes who sleeps on it if asked to.
bool operate(std::uint32_t* word, int operation, std::uint32_t bits, int wake) {
  const std::uint32_t encoded =
      static_cast<std::uint32_t>(FUTEX_OP(operation, bits, FUTEX_OP_CMP_EQ, 0));
  return syscall(SYS_futex, word, FUTEX_WAKE_OP_PRIVATE, wake, 0L, word, encoded) >= 0;
}

bool write_word(std::uint32_t* word, std::uint32_t value) {
  iovec from{&value, sizeof value}, to{word, sizeof value};
  return process_vm_writev(getpid(), &from, 1, &to, 1, 0) == sizeof value;
}

}  // namespace

std::ptrdiff_t word_offset() {
  return reinterpret_cast<char*>(own_word()) - static_cast<char*>(__builtin_thread_pointer());
}

Status setup() {
  void* head = robust_list_of(0);
  if (head == nullptr) {
    return fail(ENOSYS,
                "get_robust_list is not allowed in this process: its threads cannot be "
                "reached without stopping them, so nothing can be patched");
  }
  g_from_robust_list = reinterpret_cast<char*>(own_word()) - static_cast<char*>(head);
  // The ways that everything below depends on, tried on our own word.
  std::uint32_t value = 0;
  if (!read_word(own_word(), value) || !write_word(own_word(), value)) {
    return fail_errno(errno,
                      "process_vm_readv on this process itself is not allowed, so nothing can "
                      "be patched");
  }
  if (!operate(own_word(), FUTEX_OP_OR, 0, 0)) return fail_errno(errno, "futex operations fail");
  return {};
}

void set_self_check(SelfCheck check) { g_self_check.store(check, std::memory_order_release); }

#ifdef MOLT_TORTURE_STEPS
std::atomic<int> g_late_newcomers{0};
// In a forked child there is nobody for whose next step it would be worth to wait.
std::atomic<bool> g_is_forked{false};
#endif

void await_self_checks(unsigned threads, void (*done)()) {
  g_all_done.store(done, std::memory_order_release);
  g_awaited.store(threads, std::memory_order_release);
}

namespace {
void changed_over() {
  unsigned awaited = g_awaited.load(std::memory_order_acquire);
  while (awaited != 0) {
    if (!g_awaited.compare_exchange_weak(awaited, awaited - 1, std::memory_order_acq_rel,
                                         std::memory_order_acquire)) {
      continue;
    }
    if (awaited == 1) g_all_done.load(std::memory_order_acquire)();
    return;
  }
}
}  // namespace

std::uint32_t begin(Side from) {
  std::uint32_t generation = g_last_generation.load(std::memory_order_relaxed) + 1;
  if (generation >= 1u << (32 - generation_shift)) generation = 1;
  g_last_generation.store(generation, std::memory_order_relaxed);
  g_agent_process.store(getpid(), std::memory_order_relaxed);
  g_control.store(decided(generation, from), std::memory_order_seq_cst);
  return generation;
}

void seal(Side target) { turn(target); }

void turn(Side target) {
  const std::uint32_t generation = generation_of(g_control.load(std::memory_order_relaxed));
  g_control.store(decided(generation, target), std::memory_order_seq_cst);
}

void close() {
  g_control.fetch_or(closed_bit, std::memory_order_seq_cst);
#ifndef MOLT_MUTATE_NO_BARRIER
  heavy_barrier();  // pairs with settle(): word written, control read again
#endif
}

void reopen() { g_control.fetch_and(~closed_bit, std::memory_order_seq_cst); }

void end() { g_control.store(0, std::memory_order_seq_cst); }

std::uint32_t generation() { return generation_of(g_control.load(std::memory_order_acquire)); }

namespace {
std::uint32_t* word_of(int tid, int self) {
  if (tid == self) return own_word();
  void* head = robust_list_of(tid);
  if (head == nullptr) return nullptr;
  return reinterpret_cast<std::uint32_t*>(static_cast<char*>(head) + g_from_robust_list);
}
}  // namespace

std::uint32_t* word_of(int tid) { return word_of(tid, gettid()); }

bool exists(int tid) { return syscall(SYS_tgkill, getpid(), tid, 0) == 0 || errno != ESRCH; }

bool read_word(const std::uint32_t* word, std::uint32_t& value) {
  iovec to{&value, sizeof value}, from{const_cast<std::uint32_t*>(word), sizeof value};
  return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == sizeof value;
}

void read_words(std::span<ThreadWord> words) {
  constexpr std::size_t at_once = 512;  // IOV_MAX is 1024
  iovec from[at_once];
  std::uint32_t values[at_once];
  std::size_t of[at_once];
  const int self = gettid();
  for (std::size_t begin = 0; begin < words.size();) {
    std::size_t count = 0, next = begin;
    for (; next < words.size() && count < at_once; ++next) {
      std::uint32_t* word = word_of(words[next].tid, self);
      if (word == nullptr) {
        words[next].state = exists(words[next].tid) ? ThreadWord::unreachable : ThreadWord::gone;
        continue;
      }
      words[next].state = ThreadWord::gone;
      from[count] = {word, sizeof *word};
      of[count++] = next;
    }
    // It ends at the first word whose memory has gone with its thread.
    for (std::size_t done = 0; done < count; ++done) {
      const iovec to{values, (count - done) * sizeof *values};
      const ssize_t bytes = process_vm_readv(getpid(), &to, 1, from + done, count - done, 0);
      const std::size_t got = bytes > 0 ? static_cast<std::size_t>(bytes) / sizeof *values : 0;
      for (std::size_t i = 0; i < got; ++i) {
        words[of[done + i]].state = ThreadWord::read;
        words[of[done + i]].value = values[i];
      }
      done += got;
    }
    begin = next;
  }
}

bool set_bits(std::uint32_t* word, std::uint32_t bits) {
  return operate(word, FUTEX_OP_OR, bits, 0);
}

bool clear_bits_and_wake(std::uint32_t* word, std::uint32_t bits) {
  constexpr int all = 1 << 20;
  return operate(word, FUTEX_OP_ANDN, bits, all);
}

Mark mark(int tid, std::uint32_t generation, Side from) {
  std::uint32_t* word = word_of(tid);
  if (word == nullptr) return exists(tid) ? Mark::young : Mark::gone;
  std::uint32_t value = 0;
  if (!read_word(word, value)) return Mark::gone;
  if (generation_of(value) == generation) return Mark::marked;
  // G5. The thread itself may be writing the very same value; one that has got this memory since
  // is a newcomer, for which it is right as well.
  if (!write_word(word, decided(generation, from))) return Mark::gone;
  return word_of(tid) == word ? Mark::marked : Mark::gone;
}

bool is_held_self(std::uint32_t generation, Side target) {
  const std::uint32_t value = load(own_word());
  return generation_of(value) == generation && side_of(value) != target;
}

void leave_self(std::uint32_t generation, Side target) {
  std::uint32_t* word = own_word();
  const std::uint32_t value = load(word);
  if (value & switching_bit) return;  // the agent is looking; its answer counts
  if (is_held_self(generation, target) && swap(word, value, decided(generation, target))) {
    changed_over();
  }
}

Turned force(int tid, std::uint32_t generation, Side target) {
  return try_switch(tid, generation, target, [] { return true; });
}

int side_now(int tid, std::uint32_t generation) {
  std::uint32_t* word = word_of(tid);
  std::uint32_t value = 0;
  if (word == nullptr || !read_word(word, value) || generation_of(value) != generation) return -1;
  return static_cast<int>(side_of(value));
}

void after_fork_child() {
#ifdef MOLT_TORTURE_STEPS
  g_is_forked.store(true, std::memory_order_relaxed);
#endif
  g_agent_process.store(getpid(), std::memory_order_relaxed);
  std::uint32_t* word = own_word();
  const std::uint32_t value = load(word);
  // The agent's look at this thread ended with the process it was in.
  if (value & switching_bit) {
    __atomic_store_n(word, (value & ~switching_bit) | pending_bit, __ATOMIC_SEQ_CST);
  }
}

Settled settle(std::uint32_t generation, std::uintptr_t sp) {
  constexpr int look_again_ms = 10;  // only for who was forked without the C library's knowledge
  std::uint32_t* word = own_word();
  for (;;) {
    const std::uint32_t control = g_control.load(std::memory_order_seq_cst);
    if (generation_of(control) != generation) return Settled::stale;
    const std::uint32_t value = load(word);

    const std::uint32_t rule = control & ~closed_bit;
    if (generation_of(value) != generation) {  // G4
#ifdef MOLT_TORTURE_STEPS
      // A newcomer writes down what has long ceased to be the rule. If old code is on its stack the census
      // marks it instead.
      if (value == 0 && !g_is_forked.load(std::memory_order_relaxed)) {
        g_late_newcomers.fetch_add(1, std::memory_order_seq_cst);
        MOLT_TORTURE_UNTIL(load(word) != value || gate::generation() != generation, 30000);
        g_late_newcomers.fetch_sub(1, std::memory_order_seq_cst);
      }
#endif
      if (!swap(word, value, rule)) continue;
#ifndef MOLT_MUTATE_NO_RECHECK
      const std::uint32_t now = g_control.load(std::memory_order_seq_cst);
      if (now != control && ((now & closed_bit) || generation_of(now) != generation)) {
        swap(word, rule, 0);  // G6
        continue;
      }
#endif
      return Settled::decided;
    }
    if (value & switching_bit) {
      if (getpid() != g_agent_process.load(std::memory_order_relaxed)) {
        swap(word, value, (value & ~switching_bit) | pending_bit);
        continue;
      }
      futex_wait(word, value, Deadline::in_ms(look_again_ms));
      continue;
    }
    if (value & pending_bit) {
      SelfCheck check = g_self_check.load(std::memory_order_acquire);
      using threads::Own;
      Asked& asked = t_asked;
      if (asked.generation != generation) asked = {generation, 0, 0, 0};
      const Own own = check ? check(generation, side_of(control), sp, asked.held_at) : Own::unknown;
      if (own == Own::stays && ++asked.looks < most_looks(asked)) {
        return side_of(value) == Side::patched ? Settled::stays_patched : Settled::stays_unpatched;
      }
      const bool was_most = most_looks(asked) >= many_looks;
      asked = {generation, 0, was_most ? 0 : asked.in_vain + 1, 0};
      // Fails if a reversal took PENDING away, or the agent closed the gate meanwhile.
      if (swap(word, value, own == Own::leaves ? rule : value & ~pending_bit) &&
          own == Own::leaves) {
        changed_over();
      }
      continue;
    }
    return Settled::decided;
  }
}

}  // namespace molt::livepatch::gate
