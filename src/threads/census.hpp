// census.hpp - all threads of this process, with what is needed to look at them without touching
// them: descriptors that stay open, the bounds of their stacks.
//
// For callers: nobody needs a census of his own. inspect() runs a function on the census thread,
// which alone owns the descriptors; residency.hpp has the questions that can be asked there, and
// prove_out(), which does it all.
//
//     Status done = threads::inspect([&](threads::Census& census) {
//       if (Status ok = census.refresh(); !ok) { error = ok.error(); return; }
//       for (threads::Thread* thread : census.threads()) { ... look(census, *thread, ranges) ... }
//     });
//
// Roles      The `molt-census` thread owns everything here. Other threads hand it a job and wait.
//            Jobs run one at a time.
// State      Per thread of the process: two descriptors (schedstat, syscall), stack bounds, the last
//            run count that was seen and since when.
// Invariants N1 The census thread has a descriptor table of its own, made empty before anything is
//               opened in it: the host's limit, its close-everything loops and its children never
//               meet our descriptors.
//            N2 A Thread stands for one thread of the kernel, not for a number: its descriptors
//               refer to that thread for ever, and answer ESRCH once it has gone.
//            N3 After refresh() succeeded every thread that existed when it began, and still does,
//               is listed; a thread born meanwhile is listed or is found by the next one.
//            N4 No code but the runtime's runs on the census thread, and it takes no lock that is
//               held over module code. It blocks all signals.
//            N5 Who was listed before the threads were counted, and is asleep in a system call at some
//               moment afterwards, was among those counted, and not about to be taken off: who ends runs,
//               and does not sleep again. If all who were listed are, and are as many, nobody else was
//               there. One count takes the place of two listings then. A look through the descriptors
//               (N2) says so, or the run count, if it is what it was before the threads were counted.
// Order      procfs can skip a thread while another dies. Of two listings that both began after a
//            thread was born, and that are equal, none has skipped it: the death that hides it from
//            the first leaves the dead one in the first listing only.
// Progress   A job waits for the jobs before it. refresh() gives up (EAGAIN) if threads come and go
//            faster than they can be listed, 64 times in a row.
// Death      A thread that ends is dropped by the next listing that lacks it. fork: the child has
//            neither the census thread nor its descriptors, forgets them, and starts anew when asked.
//            If the census thread cannot be started, the error says so and nothing is proven.
//            stop_census() ends it, and so does a while without a question, where that was allowed
//            (let_census_end()) and what it has open may be opened again. The next question starts another,
//            which goes on counting where this one was: serials and changes() never repeat.
// Refuses    Errors of /proc where it is not mounted or forbidden. Threads born after the process gave
//            up its dumpability (setuid, PR_SET_DUMPABLE) cannot be opened without privilege: they are
//            listed, and every look at them is `unknown`, until root lends their files (lent.hpp).
//            Threads beyond half of RLIMIT_NOFILE (soft), which counts in our table too, are opened at
//            each look (20 us).
// Checked by tests/threads/census_test.cpp
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "threads/lent.hpp"
#include "threads/maps.hpp"
#include "threads/procfs.hpp"

namespace molt::threads {

// What somebody who can unwind says of a sleeping thread's stack (residency.hpp, testify()).
struct Testimony {
  std::uint64_t runs = 0;             // the thread's run count, before the walk and after
  std::uintptr_t from = 0, to = 0;    // the words here are decided
  std::vector<std::uintptr_t> slots;  // where live frames' return addresses lie, ascending

  // No frame returns by the word at this address.
  bool is_stale(std::uintptr_t at) const {
    return at >= from && at < to && !std::binary_search(slots.begin(), slots.end(), at);
  }
};

// What is known of one thread. The census thread's alone.
struct Thread {
  int tid = 0;
  std::uint64_t serial = 0;   // unique in the life of the process
  std::size_t slot = 0;       // dense; reused once the thread is gone
  bool is_worker = false;     // the kernel's own (io_uring, vhost): never runs user code
  bool is_gone = false;       // its descriptors have answered ESRCH
  bool is_spare = false;      // opened for one look at a time: the table is full
  bool was_asked = false;     // whether is_worker is known
  bool blocks_traps = false;  // SIGTRAP, when it was asked last
  bool has_begun = false;     // what it was started for (start.hpp)
  int open_error = 0;         // why its files could not be opened; 0: they are
  Fd schedstat;
  Fd syscall;

  // Where this thread's own stack lies; empty while that cannot be found out, as for threads that
  // have no glibc descriptor.
  Extent stack;
  // The start routine in its descriptor, masked; 0: not known.
  std::uintptr_t start_routine = 0;

  // The last run count that was seen, and when it was seen first: so long, at least, the thread has
  // slept.
  std::uint64_t runs = 0;
  std::int64_t runs_since_ns = 0;

  // What its `syscall` said when it slept with that run count, both of pc and arguments masked (ranges.hpp):
  // holds while `runs` is what it was. 0: never. `registers_settled`: the count was read afterwards too.
  Snapshot registers;
  std::uint64_t registers_at = 0;
  bool registers_settled = false;

  // The run count at which it was asleep and out of what was foreseen under that number; 0: never.
  std::uint64_t clean_at = 0, clean_of = 0;

  // The run count at which it was asleep and seen to let SIGTRAP in; 0: never. Only it itself changes
  // its mask, so while it has not run since, it still does (residency.hpp).
  std::uint64_t traps_open_at = 0;

  // Worth something while `runs` is what it was.
  Testimony testimony;
  const Testimony* valid_testimony() const {
    return runs != 0 && testimony.runs == runs ? &testimony : nullptr;
  }
};

class Census {
 public:
  Census();
  ~Census();
  Census(const Census&) = delete;
  Census& operator=(const Census&) = delete;

  // Lists the threads until nobody was missed (N3); opens what is new, drops what has gone.
  [[nodiscard]] Status refresh();
  // One listing. N3 holds if two in a row left `changes()` as it was.
  [[nodiscard]] Status list();
  // Counts listings that differed from the one before.
  std::uint64_t changes() const { return changes_; }
  // How many threads the process has now, without listing them; 0: that cannot be told. N5: if that is as
  // many as were listed, and each of those is seen asleep afterwards, then those are all there were.
  std::size_t count() const;
  bool is_all(std::size_t count) const;
  // As of the last listing, in the kernel's order; the census thread itself is not among them.
  const std::vector<Thread*>& threads() const { return list_; }
  // Null if the last listing had none of that number.
  Thread* find(int tid) const;
  // One more than the greatest slot in use.
  std::size_t slots() const { return slots_.size(); }

  // Opens the thread's files if they are not: for what did not fit into the table. close() again if
  // `is_spare`.
  [[nodiscard]] bool open(Thread& thread) { return open(thread, {}); }
  void close_spare(Thread& thread);
  // Finds the thread's own stack, if that is not known yet.
  void find_stack(Thread& thread);
  // lent.hpp. One thread's `syscall`; false: it is another file, or not needed.
  bool lend(int tid, Fd file);
  [[nodiscard]] Status take_loans(Loans& loans);
  // Its thread pointer, at the upper end of its stack if it is not the first thread; 0: it is not glibc's.
  std::uintptr_t descriptor_of(const Thread& thread) const;
  // Whether it is one of the kernel's own; asked once.
  bool is_worker(Thread& thread);
  // Asks for that and for blocks_traps. False: it has gone.
  bool read_flags(Thread& thread);

  Maps& maps() { return maps_; }
  // Bytes of other threads' memory are copied to here. Wiped by wipe(): a copy of a code address
  // must not look like a pointer to that code.
  std::byte* scratch() { return scratch_; }
  static constexpr std::size_t scratch_bytes = 256 * 1024;
  void note_scratch(std::size_t bytes) {
    if (bytes > scratch_used_) scratch_used_ = bytes;
  }
  void wipe();
  // For tests: as on a kernel that keeps no run counts.
  void count_runs(bool on) { counts_runs_ = on; }
  bool counts_runs() const { return counts_runs_; }

 private:
  friend struct CensusKeeper;
  [[nodiscard]] Status set_up();
  [[nodiscard]] Status read_directory();
  void adopt();
  // How many of tids_, from the front, are threads that are known, or too new to be.
  std::size_t last_known(const std::vector<Thread*>& old) const;
  bool is_alive(const Thread& thread) const;
  bool open(Thread& thread, Fd lent);
  bool is_file_of(const Thread& thread, const Fd& lent) const;
  bool can_be_had_again() const;
  static std::size_t most_descriptors();
  bool has_room() const { return open_descriptors_ + 2 <= most_descriptors(); }
  void drop(Thread& thread);
  bool read_first(Thread& thread);

  Fd directory_;
  LoanDesk desk_;
  Maps maps_;
  std::byte* scratch_ = nullptr;
  std::size_t scratch_used_ = 0;
  std::vector<int> tids_, previous_;
  std::vector<std::unique_ptr<Thread>> slots_;
  std::vector<std::size_t> free_slots_;
  std::vector<Thread*> list_;
  std::uint64_t next_serial_;
  std::uint64_t changes_;
  std::uintptr_t robust_offset_ = 0, start_offset_ = 0;  // from a descriptor
  std::uintptr_t main_stack_top_ = 0;
  std::size_t open_descriptors_ = 0;
  int process_ = 0, own_tid_ = 0;
  bool counts_runs_ = true;
};

// Starts the census thread and opens what is there, if that was not done yet. Any thread; blocks for
// about 30 us a thread the first time. Best called early, before the process gives up privileges
// (Refuses). Everything below does it by itself.
[[nodiscard]] Status start_census();

// From now on the census thread ends when nothing was asked for so long; -1: never. It stays where the
// process has given up the right to open its threads' files, which it has.
void let_census_end(int idle_ms);

// Ends the census thread and closes what it holds; the next question starts it again. Waits for the
// job under way; not from a job.
void stop_census();

// Runs job on the census thread and waits for it; called on the census thread, directly. Not from a
// signal handler. The error is that of start_census(); job then did not run. `job` must not run
// module code, wait for another thread, or leave descriptors open.
[[nodiscard]] Status inspect(const std::function<void(Census&)>& job);

bool on_census_thread();

// pthread_atfork handlers: no job may be half-way handed over in the child.
void census_before_fork();
void census_after_fork(bool child);

}  // namespace molt::threads
