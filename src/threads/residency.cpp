#include "threads/residency.hpp"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "threads/look.hpp"
#include "threads/own_frames.hpp"
#include "threads/procfs.hpp"
#include "threads/sample.hpp"
#include "threads/self_proof.hpp"
#include "threads/sharers.hpp"
#include "threads/signalled.hpp"

namespace molt::threads {
namespace {

// Between two rounds, while a thread is inside or runs: from short to long.
constexpr std::int64_t first_pause_ns = 200'000;
constexpr std::int64_t longest_pause_ns = 20'000'000;
// From round to round longer: who has busy others beside it is let run when all of those have had their slice.
constexpr std::int64_t first_sample_ns = 3'000'000, longest_sample_ns = 24'000'000;
// Who runs takes the signal at the next tick of its clock; who is kept from running by others, when it is let.
constexpr std::int64_t least_signal_wait_ns = 50'000'000, most_signal_wait_ns = 1'000'000'000;
constexpr std::size_t samples_at_once = 8;
// Whoever passes hooks often enough for it has come by in that time.
constexpr std::int64_t call_in_ms = 50;
// Most are asleep, or in a sample, by then, and nobody need be called.
constexpr std::size_t rounds_alone = 2;
constexpr int most_listings = 8;

void name_it(Finding& f) {
  const std::string name = thread_name(f.tid);
  std::snprintf(f.name, sizeof f.name, "%s", name.c_str());
}

// What one proof knows of one thread. The thread is known by its serial: a slot is used again.
struct Mark {
  enum State : std::uint8_t {
    pending,
    looked,  // out, if it turns out not to have run since
    out,     // out at some moment since the proof began
  };
  std::uint64_t serial = 0;
  State state = pending;
};

class Prover {
 public:
  Prover(const RangeSet& ranges, const ProofOptions& options, const Asker& asker)
      : ranges_(ranges),
        options_(options),
        asker_(asker),
        asker_is_out_(own_frames_are_out(ranges)) {}

  ~Prover() { call_in(false); }

  // One round on the census thread: true if everybody is out.
  bool round(Census& census);
  // Between two: asks those that run to look at themselves, or gives that up.
  void call_in_runners();
  Status status;
  Proof proof;

 private:
  Mark& mark(const Census& census, const Thread& thread) {
    if (thread.slot >= marks_.size()) marks_.resize(census.slots());
    Mark& mark = marks_[thread.slot];
    if (mark.serial != thread.serial) mark = {thread.serial, Mark::pending};
    return mark;
  }
  void hear_answers(Census& census);
  void call_in(bool on);
  void look_at_pending(Census& census);
  void take(Census& census, Thread& thread, const Finding& finding, Mark::State if_out);
  void sample_running(Census& census);
  void signal_running(Census& census);
  bool list_twice(Census& census);
  bool confirm(Census& census);

  const RangeSet& ranges_;
  const ProofOptions& options_;
  const Asker asker_;
  // By its frames: it waits for this proof, so they stay what they are.
  const bool asker_is_out_;
  SelfProof self_proof_;
  bool called_in_ = false;
  bool gave_up_ = false;
  std::size_t heard_ = 0;
  std::int64_t sample_ns_ = first_sample_ns;
  Deadline answers_until_{};
  bool all_slept_ = false;  // through the last confirm(), N5
  std::vector<Mark> marks_;
  std::vector<Thread*> pending_;
  std::vector<Finding> findings_;
};

void Prover::take(Census& census, Thread& thread, const Finding& finding, Mark::State if_out) {
  if (finding.verdict == Verdict::out) {
    mark(census, thread).state = if_out;
  } else {
    proof.holders.push_back(finding);
  }
}

// Who answered was listed before it was asked; confirm() sees that it is alive still, and so that the answer
// is its own (S2).
void Prover::hear_answers(Census& census) {
  self_proof_.hear([&](int tid) {
    Thread* thread = census.find(tid);
    if (thread == nullptr || thread->is_spare) return;
    Mark& m = mark(census, *thread);
    if (m.state == Mark::out) return;
    m.state = Mark::out;
    ++proof.answered;
  });
}

void Prover::call_in(bool on) {
  if (on != called_in_) options_.call_in(on);
  called_in_ = on;
}

void Prover::call_in_runners() {
  if (!options_.call_in || !self_proof_ || gave_up_) return;
  const bool runners =
      std::any_of(proof.holders.begin(), proof.holders.end(), [](const Finding& f) {
        return f.activity == Activity::running || f.asleep_ns < call_in_ms * 1'000'000;
      });
  if (!runners) return call_in(false);
  if (proof.rounds < rounds_alone) return;
  if (!called_in_ || proof.answered != heard_) answers_until_ = Deadline::in_ms(call_in_ms);
  heard_ = proof.answered;
  gave_up_ = answers_until_.passed();
  call_in(!gave_up_);
  if (called_in_) self_proof_.ask(ranges_);
}

void Prover::look_at_pending(Census& census) {
  hear_answers(census);
  pending_.clear();
  for (Thread* thread : census.threads()) {
    // "Looked" holds only in the round that looked: others may have read the run count since.
    Mark& m = mark(census, *thread);
    if (m.state == Mark::looked) m.state = Mark::pending;
    if (asker_is_out_ && thread->tid == asker_.tid && m.state == Mark::pending) {
      m.state = Mark::out;
      ++proof.looked_at;
    }
    if (m.state == Mark::pending) pending_.push_back(thread);
  }
  proof.holders.clear();
  findings_.resize(pending_.size());
  // In the first round for all of them together, which saves a read each. Who then turns out to have run
  // is looked at by itself: one that wakes every now and then would always have run by the end of a
  // round.
  const Settle settle = proof.rounds == 1 ? Settle::later : Settle::now;
  look_at_all(census, pending_, ranges_, asker_, settle, findings_.data(), options_.foreseen);
  for (std::size_t i = 0; i < pending_.size(); ++i) {
    take(census, *pending_[i], findings_[i], settle == Settle::now ? Mark::out : Mark::looked);
  }
  proof.looked_at += pending_.size();
}

void Prover::sample_running(Census& census) {
  if (!options_.may_sample) return;
  std::vector<Thread*> running;
  for (const Finding& f : proof.holders) {
    if (f.activity != Activity::running || running.size() == samples_at_once) continue;
    if (Thread* thread = census.find(f.tid)) running.push_back(thread);
  }
  if (running.empty()) return;
  Finding samples[samples_at_once];
  const std::size_t n = running.size();
  sample_all(census, running, ranges_, sample_ns_, samples);
  sample_ns_ = std::min(2 * sample_ns_, longest_sample_ns);
  for (std::size_t i = 0; i < n; ++i) {
    for (Finding& f : proof.holders) {
      if (f.tid != samples[i].tid) continue;
      if (samples[i].verdict == Verdict::out) ++proof.sampled;
      // "It runs" says more than why there is no sample of it.
      if (samples[i].verdict != Verdict::unknown) f = samples[i];
    }
  }
}

void Prover::signal_running(Census& census) {
  if (options_.last_means != LastMeans::signal || !options_.last_means_after.passed()) return;
  // Of one that a sample has found inside, too: the word may be a stale one, or of a trap on its way.
  std::vector<Thread*> due;
  for (const Finding& f : proof.holders) {
    if (f.activity != Activity::running || f.certain) continue;
    if (Thread* thread = census.find(f.tid)) due.push_back(thread);
  }
  if (due.empty()) return;
  // Half of the time that is left, for all of them: so there is another round.
  const std::int64_t share = (options_.deadline.at_ns - now_ns()) / 2;
  std::vector<Finding> signalled(due.size());
  signal_and_look(census, due, ranges_,
                  std::clamp(share, least_signal_wait_ns, most_signal_wait_ns), signalled.data());
  for (const Finding& told : signalled) {
    if (told.verdict == Verdict::out) ++proof.signalled;
    for (Finding& f : proof.holders) {
      if (f.tid == told.tid &&
          (told.verdict != Verdict::unknown || f.verdict == Verdict::unknown)) {
        f = told;
      }
    }
  }
}

// Two equal listings, both begun after what was found out so far (N3): where somebody runs, or N5 does not
// hold for another reason.
bool Prover::list_twice(Census& census) {
  status = {};
  for (int i = 0; i < most_listings; ++i) {
    const std::uint64_t before = census.changes();
    status = census.list();
    if (!status) return false;
    if (i > 0 && census.changes() == before) return true;
  }
  return false;
}

// Y5. A thread that is listed now, and whose run count (looked) or bare existence (out) can still be
// read through the descriptors of the one that was looked at, is that one. Whoever is out cannot have
// given birth to a thread inside since; whoever was born before that is in the listings.
bool Prover::confirm(Census& census) {
  bool all = true;
  all_slept_ = true;
  for (Thread* thread : census.threads()) {
    Mark& m = mark(census, *thread);
    if (thread->tid == asker_.tid && m.state != Mark::pending) continue;  // it waits for us
    if (thread->is_worker) {
      all_slept_ = false;
      continue;
    }
    if (m.state == Mark::pending) {
      all = all_slept_ = false;
      continue;
    }
    if (thread->is_spare) {
      // No descriptor was kept that would tell this thread from another of the same number.
      all_slept_ = false;
      Finding f;
      Thread* const one[] = {thread};
      look_at_all(census, one, ranges_, asker_, Settle::now, &f);
      if (f.verdict != Verdict::out) all = false, m.state = Mark::pending;
      continue;
    }
    const bool slept = settle(*thread);
    all_slept_ = all_slept_ && slept;
    if (slept) {
      m.state = Mark::out;
    } else if (thread->is_gone) {
      // Its number may be another's already, who was then born since: listed anew.
      all = false;
    } else if (m.state == Mark::looked) {
      m.state = Mark::pending;
      all = false;
    }
  }
  return all;
}

bool Prover::round(Census& census) {
  ++proof.rounds;
  // Whom the last listing had is looked at first; who was born since comes up in the next ones.
  if (census.threads().empty()) {
    status = census.list();
    if (!status) return false;
  }
  look_at_pending(census);
  if (!proof.holders.empty()) {
    sample_running(census);
    signal_running(census);
    auto out = std::stable_partition(proof.holders.begin(), proof.holders.end(),
                                     [](const Finding& f) { return f.verdict != Verdict::out; });
    for (auto f = out; f != proof.holders.end(); ++f) {
      if (Thread* thread = census.find(f->tid)) mark(census, *thread).state = Mark::out;
    }
    proof.holders.erase(out, proof.holders.end());
  }
  // Those that are out are confirmed even while others are not: "looked" would not outlive the
  // pause.
  const std::size_t count = census.count();
  bool all = confirm(census);
  if (!all_slept_ || !census.is_all(count)) {
    if (!list_twice(census)) return false;
    all = confirm(census);
  }
  if (!all || !proof.holders.empty()) return false;
  for (const pid_t pid : sharers()) {
    Finding f;
    f.tid = pid;
    f.reason = "a process that shares this memory";
    proof.holders.push_back(f);
  }
  return proof.holders.empty();
}

}  // namespace

Result<Finding> look_at(int tid, const RangeSet& ranges, std::int64_t wait_ns) {
  Finding finding;
  Status found = fail(ESRCH, "the process has no thread %d", tid);
  const Asker asker{gettid(), __builtin_frame_address(0)};
  Status ran = inspect([&](Census& census) {
    Thread* thread = census.find(tid);
    for (int i = 0; i < 2; ++i) {
      if (thread == nullptr) {
        found = census.refresh();
        if (!found) return;
        thread = census.find(tid);
      }
      if (thread == nullptr) {
        found = fail(ESRCH, "the process has no thread %d", tid);
        return;
      }
      Thread* const one[] = {thread};
      look_at_all(census, one, ranges, asker, Settle::now, &finding);
      // The number may be another thread's by now.
      if (!thread->is_gone) break;
      thread = nullptr;
    }
    found = {};
    if (thread == nullptr) return;
    if (finding.activity == Activity::running && wait_ns > 0) {
      const Finding sampled = sample(census, *thread, ranges, wait_ns);
      if (sampled.verdict != Verdict::unknown) finding = sampled;
    }
    if (finding.verdict != Verdict::out) name_it(finding);
  });
  if (!ran) return pass(ran);
  if (!found) return pass(found);
  return finding;
}

Status testify(int tid, std::uint64_t serial, Testimony testimony) {
  std::sort(testimony.slots.begin(), testimony.slots.end());
  Status heard = fail(ESRCH, "the process has no thread %d, or it is another one by now", tid);
  Status ran = inspect([&](Census& census) {
    if (!census.counts_runs()) {
      heard = fail(EOPNOTSUPP, "the system does not count how often threads run");
      return;
    }
    Thread* thread = census.find(tid);
    std::uint64_t runs = 0;
    if (thread == nullptr || thread->serial != serial || !thread->schedstat ||
        !read_run_count(thread->schedstat.get(), runs)) {
      return;
    }
    if (runs == 0 || runs != testimony.runs) {
      heard = fail(EAGAIN, "thread %d has run since it was unwound", tid);
      return;
    }
    thread->testimony = std::move(testimony);
    heard = {};
  });
  return ran ? heard : ran;
}

Result<Proof> prove_out(const RangeSet& ranges, const ProofOptions& options, const void* caller) {
  const void* frame = options.own_frame ? options.own_frame : caller;
  Prover prover(ranges, options, {gettid(), frame});
  if (ranges.empty()) return prover.proof;
  std::int64_t pause = first_pause_ns;
  for (;;) {
    bool all = false;
    Status ran = inspect([&](Census& census) {
      // Threads that woke meanwhile or were born get another round at once.
      for (int i = 0; i < most_listings && !all; ++i) {
        all = prover.round(census);
        if (!prover.status || !prover.proof.holders.empty()) break;
      }
    });
    if (!ran) return pass(ran);
    if (!prover.status) return pass(prover.status);
    if (all) return std::move(prover.proof);
    if (options.cancelled && options.cancelled()) {
      prover.proof.cancelled = true;
      break;
    }
    if (options.deadline.passed()) break;
    prover.call_in_runners();
    const timespec t{0, pause};
    clock_nanosleep(CLOCK_MONOTONIC, 0, &t, nullptr);
    pause = std::min(2 * pause, longest_pause_ns);
  }
  if (prover.proof.holders.empty()) {
    Finding f;
    f.reason = "threads come and go faster than they can be looked at";
    prover.proof.holders.push_back(f);
  }
  for (Finding& f : prover.proof.holders) name_it(f);
  return std::move(prover.proof);
}

const char* to_text(Verdict verdict) {
  switch (verdict) {
    case Verdict::out:
      return "out";
    case Verdict::inside:
      return "inside";
    case Verdict::unknown:
      return "unknown";
  }
  return "?";
}

const char* syscall_name(long number) {
  struct Name {
    long number;
    const char* name;
  };
  static constexpr Name names[] = {
      {SYS_read, "read"},
      {SYS_readv, "readv"},
      {SYS_write, "write"},
      {SYS_poll, "poll"},
      {SYS_ppoll, "ppoll"},
      {SYS_select, "select"},
      {SYS_pselect6, "pselect6"},
      {SYS_epoll_wait, "epoll_wait"},
      {SYS_epoll_pwait, "epoll_pwait"},
      {SYS_futex, "futex"},
      {SYS_nanosleep, "nanosleep"},
      {SYS_clock_nanosleep, "clock_nanosleep"},
      {SYS_pause, "pause"},
      {SYS_accept, "accept"},
      {SYS_accept4, "accept4"},
      {SYS_connect, "connect"},
      {SYS_recvfrom, "recvfrom"},
      {SYS_recvmsg, "recvmsg"},
      {SYS_sendto, "sendto"},
      {SYS_sendmsg, "sendmsg"},
      {SYS_wait4, "wait4"},
      {SYS_waitid, "waitid"},
      {SYS_rt_sigtimedwait, "rt_sigtimedwait"},
      {SYS_rt_sigsuspend, "rt_sigsuspend"},
      {SYS_semop, "semop"},
      {SYS_semtimedop, "semtimedop"},
      {SYS_msgrcv, "msgrcv"},
      {SYS_msgsnd, "msgsnd"},
      {SYS_flock, "flock"},
      {SYS_fcntl, "fcntl"},
      {SYS_ioctl, "ioctl"},
      {SYS_fsync, "fsync"},
      {SYS_vfork, "vfork"},
      {SYS_clone, "clone"},
      {SYS_clone3, "clone3"},
      {SYS_io_uring_enter, "io_uring_enter"},
      {SYS_io_getevents, "io_getevents"},
      {SYS_mq_timedreceive, "mq_timedreceive"},
      {SYS_sched_yield, "sched_yield"},
      {SYS_exit, "exit"},
  };
  for (const Name& n : names) {
    if (n.number == number) return n.name;
  }
  return "";
}

}  // namespace molt::threads
