#include "threads/look.hpp"

#include <linux/sched.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/futex.hpp"
#include "threads/start.hpp"

namespace molt::threads {
namespace {

// What a sleeper usually has on its stack fits; a deeper one is copied by itself.
constexpr std::size_t batch = 16;
constexpr std::size_t batch_bytes = 8192;
static_assert(batch * (batch_bytes + 64) <= Census::scratch_bytes);

// A thread that wakes while it is looked at is looked at once more; then it counts as running.
constexpr int most_tries = 2;

// Broken on purpose, for the stress that must see it (tests/threads).
#ifdef MOLT_MUTATE_NO_RUN_COUNT
constexpr bool mutate_no_run_count = true;
#else
constexpr bool mutate_no_run_count = false;
#endif
#ifdef MOLT_MUTATE_OLD_REGISTERS
constexpr bool mutate_old_registers = true;
#else
constexpr bool mutate_old_registers = false;
#endif
#ifdef MOLT_MUTATE_NO_ARGUMENTS
constexpr bool mutate_no_arguments = true;
#else
constexpr bool mutate_no_arguments = false;
#endif

void note_runs(Thread& thread, std::uint64_t runs) {
  thread.runs = runs;
  thread.runs_since_ns = now_ns();
}

// vfork, or a clone that suspends the parent: the child runs on the parent's stack, or at least in
// its memory, until it executes a program.
bool lends_memory(const Snapshot& s) {
  if (s.number == SYS_vfork) return true;
  std::uint64_t flags = 0;
  if (s.number == SYS_clone) {
    flags = s.arguments[0];
  } else if (s.number == SYS_clone3) {
    if (!copy_memory(&flags, s.arguments[0], sizeof flags)) return true;
  }
  return (flags & CLONE_VFORK) != 0;
}

void is_unknown(Finding& f, const char* reason) {
  if (f.verdict == Verdict::inside) return;
  f.verdict = Verdict::unknown;
  f.reason = reason;
}

void mask(Snapshot& s) {
  s.pc ^= RangeSet::mask;
  for (std::uint64_t& argument : s.arguments) argument ^= RangeSet::mask;
}

bool counts(const Census& census, const Thread& thread) {
  return census.counts_runs() && thread.runs != 0;
}

// A thread that has not run since its registers were read has them still, and need not be asked.
Snapshot registers_of(const Census& census, Thread& thread) {
  const bool counted = counts(census, thread);
  Snapshot s;
  const bool has_not_run = thread.registers_at == thread.runs;
  if (counted && thread.registers_settled && (has_not_run || mutate_old_registers)) {
    s = thread.registers;
    mask(s);
    return s;
  }
  s = read_syscall(thread.syscall.get());
  thread.registers_settled = false;
  thread.registers_at = counted && s.kind == Snapshot::sleeping ? thread.runs : 0;
  if (thread.registers_at != 0) {
    thread.registers = s;
    mask(thread.registers);
  }
  return s;
}

// Takes what its `syscall` says; true if its stack is to be scanned.
bool take_snapshot(Census& census, Thread& thread, Finding& f, Snapshot& s) {
  s = registers_of(census, thread);
  f.sp = s.sp;
  f.pc = s.pc ^ RangeSet::mask;
  f.syscall = s.number;
  switch (s.kind) {
    case Snapshot::sleeping:
      saw_asleep(thread, s.pc);
      return true;
    case Snapshot::stopped:
      return true;
    case Snapshot::gone:
      thread.is_gone = s.error == ESRCH;
      f.activity = Activity::gone;
      f.verdict = Verdict::out;
      return false;
    case Snapshot::running:
      if (census.is_worker(thread)) {
        f.verdict = Verdict::out;
      } else {
        f.activity = Activity::running;
        is_unknown(f, "it runs");
      }
      return false;
    case Snapshot::unreadable:
      is_unknown(f, "the system does not show its registers");
      return false;
  }
  return false;
}

// Everything but the stack.
void scan_registers(const Snapshot& s, Scan& scan) {
  scan.word(s.pc, "it is in the code", true);
  // glibc's vfork keeps its return address in one.
  if (mutate_no_arguments) return;
  for (const std::uint64_t argument : s.arguments) {
    scan.word(argument, "an address in a register", s.number == SYS_vfork);
  }
}

// What can only be said after the stack was found clean.
void last_doubts(const Thread& thread, const Snapshot& s, Finding& f) {
  if (f.verdict == Verdict::inside) return;
  if (!thread.has_begun) {
    is_unknown(f, not_begun);
  } else if (s.kind == Snapshot::stopped) {
    is_unknown(f, "it is stopped outside of a system call, with registers that nobody sees");
  } else if (lends_memory(s)) {
    is_unknown(f, "a child process runs in its memory until it executes a program");
  }
}

const char* scan_stack(Census& census, Thread& thread, Scan& scan, std::uintptr_t sp) {
  if (!thread.stack.contains(sp)) census.find_stack(thread);
  if (thread.stack.contains(sp)) return scan.own_stack(census, thread.stack);
  if (thread.stack) return scan.other_stack(census, thread.stack);
  return scan.any_stack(census);
}

Finding scan_asker(Census& census, Thread& thread, const RangeSet& ranges, const void* frame) {
  Finding f;
  f.tid = thread.tid;
  f.verdict = Verdict::out;
  f.sp = reinterpret_cast<std::uintptr_t>(frame);
  Scan scan(ranges, f, f.sp);
  if (const char* why = scan_stack(census, thread, scan, f.sp)) is_unknown(f, why);
  return f;
}

// Y2 where the kernel counts no runs: asleep before and after, and not taken off a CPU in between.
Finding look_by_switches(Census& census, Thread& thread, const RangeSet& ranges) {
  Finding f;
  f.tid = thread.tid;
  f.verdict = Verdict::out;
  std::uint64_t before = 0, after = 0;
  Snapshot s, again;
  if (!read_switch_count(thread.tid, before)) {
    is_unknown(f, "the system does not show how often it ran");
    return f;
  }
  if (!take_snapshot(census, thread, f, s)) return f;
  Scan scan(ranges, f, s.sp);
  scan_registers(s, scan);
  if (const char* why = scan_stack(census, thread, scan, s.sp)) is_unknown(f, why);
  scan.start_of(thread);
  last_doubts(thread, s, f);
  Finding second;
  const bool slept = take_snapshot(census, thread, second, again) && again.sp == s.sp &&
                     again.pc == s.pc && again.number == s.number &&
                     read_switch_count(thread.tid, after) && after == before;
  if (!slept && second.activity != Activity::gone && !mutate_no_run_count) {
    f = Finding{};
    f.tid = thread.tid;
    f.activity = Activity::running;
    is_unknown(f, "it woke while it was looked at");
  }
  return f;
}

Finding look_once(Census& census, Thread& thread, const RangeSet& ranges, Settle settle) {
  Finding f;
  f.tid = thread.tid;
  f.serial = thread.serial;
  f.verdict = Verdict::out;
  Snapshot s;
  if (!take_snapshot(census, thread, f, s)) return f;
  Scan scan(ranges, f, s.sp, thread.valid_testimony());
  scan_registers(s, scan);
  if (const char* why = scan_stack(census, thread, scan, s.sp)) is_unknown(f, why);
  scan.start_of(thread);
  last_doubts(thread, s, f);
  // A hit is settled at once: it is told, and shall be true.
  if (settle == Settle::later && f.verdict == Verdict::out) return f;
  if (!threads::settle(thread)) {
    f = Finding{};
    f.tid = thread.tid;
    f.serial = thread.serial;
    if (thread.is_gone) {
      f.verdict = Verdict::out;
      f.activity = Activity::gone;
    } else {
      f.activity = Activity::running;
      is_unknown(f, "it woke while it was looked at");
    }
  }
  return f;
}

Finding look_alone(Census& census, Thread& thread, const RangeSet& ranges, Settle settle) {
  if (!counts(census, thread)) return look_by_switches(census, thread, ranges);
  Finding f;
  for (int i = 0; i < most_tries; ++i) {
    f = look_once(census, thread, ranges, settle);
    if (f.activity != Activity::running || f.sp != 0) break;
  }
  return f;
}

void finish(Thread& thread, Finding& f, std::int64_t now) {
  if (f.verdict == Verdict::out || f.activity != Activity::sleeping) return;
  if (thread.runs != 0) f.asleep_ns = now - thread.runs_since_ns;
}

}  // namespace

bool settle(Thread& thread) {
  std::uint64_t runs = 0;
  if (!read_run_count(thread.schedstat.get(), runs)) {
    thread.is_gone = errno == ESRCH;
    return false;
  }
  const bool slept = runs == thread.runs || mutate_no_run_count;
  if (runs != thread.runs) note_runs(thread, runs);
  thread.registers_settled |= runs != 0 && thread.registers_at == runs;
  return slept;
}

bool blocks_sigtrap(Census& census, Thread& thread, bool& all_slept) {
  const bool has_count = counts(census, thread) && thread.schedstat && thread.syscall;
  const bool is_known = has_count && thread.traps_open_at == thread.runs;
#ifdef MOLT_MUTATE_OLD_TRAPS
  if (is_known) return false;
#endif
  if (is_known && settle(thread)) return false;
  const bool was_asleep = has_count && registers_of(census, thread).kind == Snapshot::sleeping;
  const bool is_there = census.read_flags(thread);
  const bool slept = was_asleep && settle(thread);
  all_slept = all_slept && slept;
  if (!is_there || thread.is_worker) return false;
  if (thread.blocks_traps) return true;
  if (slept) thread.traps_open_at = thread.runs;
  return false;
}

void look_at_all(Census& census, std::span<Thread* const> threads, const RangeSet& ranges,
                 const Asker& asker, Settle settle_when, Finding* findings,
                 const Foreseen& foreseen) {
  struct Copied {
    std::size_t index;
    Snapshot snapshot;
    std::byte* copy;
    std::size_t bytes;
  };
  Copied copied[batch];
  iovec local[batch], remote[batch];
  const std::int64_t now = now_ns();

  for (std::size_t from = 0; from < threads.size();) {
    std::size_t n = 0;
    std::byte* free = census.scratch();
    for (; from < threads.size() && n < batch; ++from) {
      Thread& thread = *threads[from];
      Finding& f = findings[from];
      f = Finding{};
      f.tid = thread.tid;
      f.serial = thread.serial;
      f.verdict = Verdict::out;
      if (thread.is_gone || thread.is_worker) {
        f.activity = thread.is_gone ? Activity::gone : Activity::sleeping;
        continue;
      }
      if (thread.tid == asker.tid && asker.frame != nullptr) {
        f = scan_asker(census, thread, ranges, asker.frame);
        continue;
      }
      if (!thread.schedstat && !census.open(thread)) {
        if (errno == ENOENT || errno == ESRCH) {
          f.activity = Activity::gone;
        } else {
          is_unknown(f, errno == EACCES
                            ? "it was born after the process gave up the right to look at it"
                            : "its files in /proc cannot be opened");
        }
        continue;
      }
      if (thread.is_spare || !counts(census, thread)) {
        f = look_alone(census, thread, ranges, Settle::now);
        finish(thread, f, now);
        census.close_spare(thread);
        continue;
      }
      Copied& c = copied[n];
      if (!take_snapshot(census, thread, f, c.snapshot)) continue;
      const std::uintptr_t sp = c.snapshot.sp & ~std::uintptr_t{7};
      if (!thread.stack.contains(sp)) census.find_stack(thread);
      if (!thread.stack.contains(sp) || thread.stack.end - sp > batch_bytes) {
        f = look_alone(census, thread, ranges, settle_when);
        finish(thread, f, now);
        continue;
      }
      c.index = from;
      c.copy = free + (sp - reinterpret_cast<std::uintptr_t>(free)) % 64;
      c.bytes = thread.stack.end - sp;
      local[n] = {c.copy, c.bytes};
      remote[n] = {reinterpret_cast<void*>(sp), c.bytes};
      free = c.copy + c.bytes;
      ++n;
    }
    if (n == 0) continue;

    census.note_scratch(static_cast<std::size_t>(free - census.scratch()));
    ssize_t got = process_vm_readv(getpid(), local, n, remote, n, 0);
    std::size_t again[batch];  // by themselves, once the copies are done with
    std::size_t again_count = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const Copied& c = copied[i];
      Thread& thread = *threads[c.index];
      Finding& f = findings[c.index];
      if (got < static_cast<ssize_t>(c.bytes)) {
        // One could not be read: this one, or one before it.
        got = 0;
        again[again_count++] = c.index;
        continue;
      }
      got -= static_cast<ssize_t>(c.bytes);
      Scan scan(ranges, f, c.snapshot.sp, thread.valid_testimony());
      scan_registers(c.snapshot, scan);
      scan.words(reinterpret_cast<const std::uint64_t*>(c.copy), c.bytes / 8,
                 c.snapshot.sp & ~std::uintptr_t{7});
      scan.start_of(thread);
      // Signal frames may lead to more than was copied.
      const bool followed = scan.interrupted().empty() && !scan.too_many();
      last_doubts(thread, c.snapshot, f);
      if (foreseen.ranges != nullptr && followed && f.verdict == Verdict::out) {
        Finding also;
        also.verdict = Verdict::out;
        Scan ahead(*foreseen.ranges, also, c.snapshot.sp, thread.valid_testimony());
        scan_registers(c.snapshot, ahead);
        ahead.words(reinterpret_cast<const std::uint64_t*>(c.copy), c.bytes / 8,
                    c.snapshot.sp & ~std::uintptr_t{7});
        ahead.start_of(thread);
        // Of the count that was read before the snapshot: settle() below may find another.
        thread.clean_of = also.verdict == Verdict::out ? foreseen.number : 0;
        thread.clean_at = thread.runs;
      }
      const bool later = settle_when == Settle::later && f.verdict == Verdict::out;
      if (followed && (later || settle(thread))) {
        finish(thread, f, now);
      } else {
        again[again_count++] = c.index;
      }
    }
    for (std::size_t i = 0; i < again_count; ++i) {
      findings[again[i]] = look_alone(census, *threads[again[i]], ranges, settle_when);
      finish(*threads[again[i]], findings[again[i]], now);
    }
  }
}

bool has_slept_since(const Thread& thread, std::uint64_t runs) {
  std::uint64_t now = 0;
  return runs != 0 && thread.schedstat && !thread.is_spare &&
         read_run_count(thread.schedstat.get(), now) && now == runs;
}

bool is_clean(const Census& census, Thread& thread, std::uint64_t number) {
  if (number == 0 || thread.clean_of != number || !counts(census, thread)) return false;
#ifdef MOLT_MUTATE_OLD_LOOK
  return true;
#endif
  return thread.runs == thread.clean_at && settle(thread);
}

void look_at_each(Census& census, std::span<Thread* const> threads, const RangeSet& ranges,
                  int asker, const void* own_frame, Finding* findings) {
  look_at_all(census, threads, ranges, {asker, own_frame}, Settle::now, findings);
}

Finding look(Census& census, Thread& thread, const RangeSet& ranges, const void* own_frame) {
  Finding finding;
  Thread* const one[] = {&thread};
  const Asker asker{own_frame != nullptr ? thread.tid : 0, own_frame};
  look_at_all(census, one, ranges, asker, Settle::now, &finding);
  return finding;
}

}  // namespace molt::threads
