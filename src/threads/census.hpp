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
//            Jobs run one at a time, in the order in which they come.
// State      Per thread of the process: two descriptors (schedstat, syscall), stack bounds, the last
//            run count that was seen and since when.
// Invariants N1 The census thread has a descriptor table of its own, made empty before anything is
//               opened in it (control/server.hpp, S1): the host's limit, its close-everything loops
//               and its children never meet our descriptors.
//            N2 A Thread stands for one thread of the kernel, not for a number: its descriptors
//               refer to that thread for ever, and answer ESRCH once it has gone.
//            N3 After refresh() succeeded every thread that existed when it began, and still does,
//               is listed; a thread born meanwhile is listed or is found by the next one.
//            N4 No code but the runtime's runs on the census thread, and it takes no lock that is
//               held over module code. It blocks all signals.
// Order      procfs can skip a thread while another dies. Two successive listings that are equal, and
//            as long as the thread count read after them, have skipped none: a death between or
//            during them that could hide a thread leaves the dead one in the first listing only.
// Progress   A job waits for the jobs before it. refresh() gives up (EAGAIN) if threads come and go
//            faster than they can be listed, 64 times in a row.
// Death      A thread that ends is dropped at the next refresh(). fork: the child has neither the
//            thread nor its descriptors, forgets them (after_fork_child), and starts anew when asked.
//            If the census thread cannot be started, the error says so and nothing is proven.
// Refuses    ENOSYS, EMFILE, EACCES where /proc is not there, is full or is forbidden.
//            Threads born after the process gave up its dumpability (setuid, PR_SET_DUMPABLE) cannot
//            be opened: they are listed, and every look at them is `unknown`.
// Checked by tests/threads/census_test.cpp
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace molt::threads {

// What is known of one thread. The census thread's alone.
struct Thread {
  int tid = 0;
  bool is_worker = false;  // the kernel's own (io_uring, vhost): never runs user code
  bool is_main = false;    // runs on the stack that the kernel made at exec
  int open_error = 0;      // why its files could not be opened; 0: they are
  Fd schedstat;
  Fd syscall;
  Fd status;  // opened only where schedstat counts nothing

  // [stack_low, stack_high): where this thread's own stack lies; 0, 0 if that could not be found
  // out, as for threads that have no glibc descriptor.
  std::uintptr_t stack_low = 0;
  std::uintptr_t stack_high = 0;
  // The thread pointer (glibc); 0 if unknown.
  std::uintptr_t thread_pointer = 0;

  // The last run count that was seen, and when it was seen first: so long, at least, the thread has
  // slept.
  std::uint64_t runs = 0;
  std::int64_t runs_since_ns = 0;

  std::uint64_t seen = 0;  // number of the listing that had it last
};

class Census {
 public:
  // Lists the threads until nobody was missed (N3); opens what is new, drops what has gone.
  [[nodiscard]] Status refresh();
  // As of the last refresh(), ascending by tid; the census thread itself is not among them.
  const std::vector<Thread*>& threads() const { return list_; }
  // Null if the last refresh() had none of that number.
  Thread* find(int tid) const;
  // How often refresh() had to list.
  std::uint64_t listings() const { return listings_; }

 private:
  friend struct CensusKeeper;
  Status open_directory();
  Status list_once(std::vector<int>& tids);
  Status thread_count(std::size_t& count);
  void adopt(const std::vector<int>& tids);
  void open_thread(Thread& thread);

  Fd directory_, stat_;
  std::vector<std::unique_ptr<Thread>> owned_;
  std::vector<Thread*> list_;
  std::uint64_t listings_ = 0;
  int own_tid_ = 0;
};

// Starts the census thread and opens what is there, if that was not done yet. Any thread; blocks for
// about 30 us a thread the first time. Best called early, before the process gives up privileges
// (Refuses). Everything below does it by itself.
[[nodiscard]] Status start_census();

// Runs job on the census thread and waits for it. Any thread but the census thread itself, on which
// it is called directly. Not from a signal handler. The error is that of start_census(); job then did
// not run. `job` must not run module code, wait for another thread, or open descriptors that it does
// not close.
[[nodiscard]] Status inspect(const std::function<void(Census&)>& job);

// Whether the calling thread is the census thread.
bool on_census_thread();

// pthread_atfork handlers: no job may be half-way handed over in the child.
void census_before_fork();
void census_after_fork(bool child);

}  // namespace molt::threads
