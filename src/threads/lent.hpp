// lent.hpp - files of our threads in /proc that somebody with more rights has opened for us.
//
// A process that gave up its privileges (setuid) may not open /proc/self/task/TID/syscall of threads that
// the census had not opened before: the files belong to root. Reading them is another matter: the kernel
// asks at each read who reads, and lets a thread see the others of its process. So the tools' side, as
// root, opens the files and hands them over; everything that is proven by them stays as it is.
//
//     auto first = take_loans();         // says who is missing, and where to hand over
//     ...the tools connect to first->desk and send the descriptors...
//     auto second = take_loans();        // takes them
//
// Roles      The tools, who send; the census thread, who takes.
// State      The desk: a listening socket in the census thread's descriptor table, from the first
//            question that finds a thread missing to the one that finds none.
// Invariants L1 A descriptor is taken only if it is the very file that the thread's name leads to now:
//               device and inode, both of procfs. Whatever is sent, nobody is looked at by another's
//               file.
//            L2 The process is weakened by nothing: its dumpability stays, nobody else gets a right, no
//               descriptor is ever in the host's table, and what is lent shows the process its own
//               registers only.
//            L3 Taken from root alone.
// Order      The desk is emptied, then the threads are listed: who is in the second answer is missing
//            still.
// Progress   Neither side waits for the other within a question. Who fills the desk's queue (its name can
//            be seen by anybody of the same network namespace) is sent away at the next question.
// Death      Of the sender: what it sent is there. fork: the child has no desk, and asks for one.
// Refuses    Threads beyond half of RLIMIT_NOFILE: their files are not kept, and cannot be opened anew.
// Checked by tests/threads/lent_test.cpp, threads.finds.ANY_LOAN, attach.servers.memcached
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace molt::threads {

class Census;

// In one message (SOCK_SEQPACKET): so many int32 thread ids, and as many descriptors by SCM_RIGHTS.
inline constexpr std::size_t most_loans = 64;

struct Loans {
  std::vector<int> missing;  // threads whose files may not be opened
  std::string desk;          // abstract name; empty if nobody is missing
  std::size_t taken = 0;
};

// Any thread; blocks for a listing.
[[nodiscard]] Result<Loans> take_loans();

class LoanDesk {
 public:
  [[nodiscard]] Status open();
  void close();
  // Gives the census what has been sent. How many files it took.
  std::size_t take(Census& census);
  const std::string& name() const { return name_; }

 private:
  std::size_t take_from(Census& census, const Fd& sender);

  Fd listener_;
  std::string name_;
};

}  // namespace molt::threads
