#include "attach/victim.hpp"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <sys/ucontext.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>

namespace molt::attach {

namespace {

constexpr std::size_t most_stack = std::size_t{8} << 20;

enum Rank { untimed, untimed_poll, timed, condition, timed_condition, unsuitable };

Rank rank_of(const Victim& v) {
  const auto timeout = [&](int argument) {
    return v.arguments[static_cast<std::size_t>(argument)] == 0 ? untimed : timed;
  };
  const auto poll_timeout = [&](int argument, Rank without) {
    return static_cast<int>(v.arguments[static_cast<std::size_t>(argument)]) < 0 ? without : timed;
  };
  switch (v.call) {
    case SYS_read:
    case SYS_accept:
    case SYS_accept4:
    case SYS_recvfrom:
    case SYS_recvmsg:
    case SYS_wait4:
    case SYS_waitid:
    case SYS_pause:
    case SYS_rt_sigsuspend:
    case SYS_msgrcv:
      return untimed;
    case SYS_poll:
      return poll_timeout(2, untimed);
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
      return poll_timeout(3, untimed_poll);
    case SYS_select:
    case SYS_pselect6:
      return timeout(4);
    case SYS_ppoll:
      return timeout(2);
    case SYS_nanosleep:
    case SYS_clock_nanosleep:
      return timed;
    case SYS_futex:
      if ((v.arguments[1] & FUTEX_CMD_MASK) != FUTEX_WAIT_BITSET) return unsuitable;
      return v.arguments[3] == 0 ? condition : timed_condition;
    default:
      return unsuitable;
  }
}

// A thread of a runtime that is there already: it has its own work, and its own locks.
bool is_ours(const Target& target, pid_t tid) {
  return tid != target.pid() &&
         read_text(target.proc("task/" + std::to_string(tid) + "/comm")).starts_with("molt");
}

// The bytes of glibc's, and everybody else's, return from a signal handler: mov $15,%rax; syscall.
constexpr unsigned char restorer[] = {0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05};

// Behind the word that leads there the kernel has put a ucontext: flags of three bits, no link, and the
// code segment of a 64-bit process. A `struct sigaction` that a function saved (libcurl does that in each
// transfer) has the word too, and nothing of that behind it.
constexpr std::size_t flags_at = 1, link_at = 2, registers_at = 6, segments_at = 24,
                      frame_words = 25;
constexpr std::uint64_t most_flags = 7, user_code_segment = 0x33;

bool is_frame(std::span<const std::uint64_t> words) {
  if (words.size() < frame_words) return true;
  return words[flags_at] <= most_flags && words[link_at] == 0 &&
         (words[segments_at] & 0xffff) == user_code_segment;
}

// The number of a system call, by the instruction in front of it: mov $NUMBER,%eax; syscall. That of read() is 0, and
// made by xor %eax,%eax.
std::optional<long> call_before(const Target& target, std::uint64_t instruction) {
  std::array<unsigned char, 7> code = {};
  if (!target.read(instruction - code.size(), std::as_writable_bytes(std::span(code)))) {
    return std::nullopt;
  }
  if (code[5] != 0x0f || code[6] != 0x05) return std::nullopt;
  if (code[3] == 0x31 && code[4] == 0xc0) return SYS_read;
  if (code[0] != 0xb8) return std::nullopt;
  std::uint32_t number = 0;
  std::memcpy(&number, &code[1], sizeof number);
  return number;
}

// Has the handler interrupted a call in which the thread could have been borrowed itself? PostgreSQL 15 makes some of its
// processes in a handler, which they never leave.
bool has_interrupted_plain_call(const Target& target, std::span<const std::uint64_t> frame) {
  const auto saved = [&](int name) { return frame[registers_at + static_cast<std::size_t>(name)]; };
  Victim v;
  v.arguments = {saved(REG_RDI), saved(REG_RSI), saved(REG_RDX),
                 saved(REG_R10), saved(REG_R8),  saved(REG_R9)};
  const std::uint64_t next = saved(REG_RIP);
  const auto result = static_cast<long>(saved(REG_RAX));
  std::array<unsigned char, 2> code = {};
  if (result >= 0) {
    // Before it, to make it again.
    if (!target.read(next, std::as_writable_bytes(std::span(code)))) return false;
    v.call = result;
  } else if (result == -EINTR) {
    const auto call = call_before(target, next);
    if (!call) return false;
    code = {0x0f, 0x05};
    v.call = *call;
  }
  return code[0] == 0x0f && code[1] == 0x05 && rank_of(v) != unsuitable;
}

// Is there, from the stack pointer on, the frame of a handler that may have interrupted anything?
[[maybe_unused]] bool has_signal_frame(const Target& target, const Victim& victim,
                                       const Mapping& stack) {
  const std::uint64_t begin = victim.stack_pointer & ~std::uint64_t{7};
  const std::size_t bytes = std::min<std::uint64_t>(stack.end - begin, most_stack);
  std::vector<std::uint64_t> words(bytes / 8);
  if (!target.read(begin, std::as_writable_bytes(std::span(words)))) return true;
  std::map<std::uint64_t, bool> known;
  const Mapping* last = nullptr;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::uint64_t word = words[i];
    if (last == nullptr || !last->contains(word)) {
      const Mapping* mapping = target.mapping_at(word);
      if (mapping == nullptr || !mapping->executable) continue;
      last = mapping;
    }
    auto [at, is_new] = known.try_emplace(word, false);
    if (is_new) {
      std::array<unsigned char, sizeof restorer> code = {};
      at->second = target.read(word, std::as_writable_bytes(std::span(code))) &&
                   std::memcmp(code.data(), restorer, sizeof restorer) == 0;
    }
    if (!at->second) continue;
    const auto frame = std::span<const std::uint64_t>(words).subspan(i);
    if (is_frame(frame) &&
        (frame.size() < frame_words || !has_interrupted_plain_call(target, frame))) {
      return true;
    }
  }
  return false;
}

// Those that the kernel goes on with by restart_syscall(); their arguments are still in their registers.
std::optional<long> restarted_call(const Target& target, std::uint64_t instruction) {
  const auto number = call_before(target, instruction);
  for (const long call : {SYS_poll, SYS_nanosleep, SYS_clock_nanosleep, SYS_futex}) {
    if (number == call) return call;
  }
  return std::nullopt;
}

}  // namespace

long Victim::shown_call() const { return is_restarted ? SYS_restart_syscall : call; }

std::optional<Victim> asleep(const Target& target, pid_t tid) {
  const std::string line = read_text(target.proc("task/" + std::to_string(tid) + "/syscall"));
  Victim v;
  v.tid = tid;
  auto& a = v.arguments;
  unsigned long long n[8];
  if (std::sscanf(line.c_str(), "%ld %llx %llx %llx %llx %llx %llx %llx %llx", &v.call, &n[0],
                  &n[1], &n[2], &n[3], &n[4], &n[5], &n[6], &n[7]) != 9) {
    return std::nullopt;  // "running", or asleep outside of a call
  }
  std::copy_n(n, a.size(), a.begin());
  v.stack_pointer = n[6];
  v.instruction = n[7];
  if (v.call == SYS_restart_syscall) {
    const auto call = restarted_call(target, v.instruction);
    v.is_restarted = call.has_value();
    v.call = call.value_or(v.call);
  }
  return v;
}

bool may_be_borrowed(const Target& target, const Victim& victim, std::size_t needed) {
  if (is_ours(target, victim.tid) || rank_of(victim) == unsuitable) return false;
  std::array<unsigned char, 2> code = {};
  const Mapping* stack = target.mapping_at(victim.stack_pointer);
  return stack != nullptr && victim.stack_pointer - stack->begin >= needed &&
         target.read(victim.instruction - 2, std::as_writable_bytes(std::span(code))) &&
         code[0] == 0x0f && code[1] == 0x05 && !has_signal_frame(target, victim, *stack);
}

std::vector<pid_t> find_runners(const Target& target) {
  std::vector<pid_t> running, all;
  for (const pid_t tid : target.threads()) {
    if (is_ours(target, tid)) continue;
    all.push_back(tid);
    if (!asleep(target, tid)) running.push_back(tid);
  }
  return running.empty() ? all : running;
}

std::vector<Victim> find_victims(const Target& target, std::size_t needed, std::string* why_not) {
  std::vector<Victim> victims;
  std::size_t running = 0, busy = 0, in_handler = 0, small = 0;
  for (const pid_t tid : target.threads()) {
    auto victim = asleep(target, tid);
    if (!victim) {
      ++running;
      continue;
    }
    victim->rank = is_ours(target, tid) ? unsuitable : rank_of(*victim);
    std::array<unsigned char, 2> code = {};
    const Mapping* stack = target.mapping_at(victim->stack_pointer);
    if (victim->rank == unsuitable || stack == nullptr ||
        !target.read(victim->instruction - 2, std::as_writable_bytes(std::span(code))) ||
        code[0] != 0x0f || code[1] != 0x05) {
      ++busy;
    } else if (victim->stack_pointer - stack->begin < needed) {
      ++small;
    } else {
      victims.push_back(*victim);
    }
  }
  std::stable_sort(victims.begin(), victims.end(),
                   [](const Victim& a, const Victim& b) { return a.rank < b.rank; });
  // Stacks are looked at for the first few only: one is enough.
  std::vector<Victim> good;
  constexpr std::size_t enough = 4;
  for (const Victim& victim : victims) {
    if (good.size() == enough) break;
    [[maybe_unused]] const Mapping* stack = target.mapping_at(victim.stack_pointer);
#ifdef MOLT_MUTATE_IN_HANDLERS
    const bool in_one = false;
#else
    const bool in_one = has_signal_frame(target, victim, *stack);
#endif
    if (in_one) {
      ++in_handler;
    } else {
      good.push_back(victim);
    }
  }
  if (why_not != nullptr && good.empty()) {
    *why_not = std::to_string(running) + " running, " + std::to_string(busy) +
               " waiting for locks or in other calls, " + std::to_string(in_handler) +
               " in signal handlers, " + std::to_string(small) + " with little stack left";
  }
  return good;
}

}  // namespace molt::attach
