// procfs.hpp - what /proc says of one thread. What is read for every thread of every proof is parsed by
// hand: sscanf would take longer than the kernel does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace molt::threads {

// What /proc/self/task/TID/syscall said.
struct Snapshot {
  enum Kind : std::uint8_t {
    running,
    sleeping,  // in a system call
    stopped,   // outside of one (page fault, stopped by a debugger): its registers are unknown
    gone,      // ESRCH; or a zombie, which has no registers left
    unreadable,
  };
  Kind kind = unreadable;
  int error = 0;  // of the read, if unreadable
  long number = -1;
  std::uint64_t arguments[6] = {};
  std::uintptr_t sp = 0;
  std::uintptr_t pc = 0;
};

Snapshot read_syscall(int fd);
Snapshot parse_syscall(const char* text, std::size_t length);

// The third number of schedstat: how often the thread was put on a CPU. False with errno: ESRCH, it
// is gone. 0: this kernel does not count, or the thread has never run.
bool read_run_count(int fd, std::uint64_t& count);
bool parse_run_count(const char* text, std::size_t length, std::uint64_t& count);

// voluntary_ctxt_switches + nonvoluntary_ctxt_switches of /proc/self/task/TID/status: grows each
// time the thread is taken off a CPU. Stands in for the run count where that is not kept: a thread
// found asleep twice, with equal counts before and after, was not on a CPU in between.
bool read_switch_count(int tid, std::uint64_t& count);

// As in /proc/self/task/TID/comm; empty if there is no such thread.
std::string thread_name(int tid);

// The N-th field (from 1, as in proc(5)) of a stat file; 0 if it cannot be read.
std::uint64_t read_stat_field(const char* path, int field);
// Those from the third to the last that there is room for, fields[N] being the N-th, by one read.
bool read_stat_fields(int fd, std::span<std::uint64_t> fields);

}  // namespace molt::threads
