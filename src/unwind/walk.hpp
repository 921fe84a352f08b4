// walk.hpp - which words on a sleeping thread's stack are return addresses of live frames, and which
// are left over from frames that are gone. On the tools' side: the runtime carries no DWARF code.
//
// The conservative scan (threads/residency.hpp) takes every word that points into a module for a
// reason to wait. Here the thread is unwound, from outside and untouched, by its call frame
// information: what lies between its stack pointer and the last proven frame, and is no frame's return
// slot, is exonerated. Used to exonerate, never to accuse; what lies beyond stays a hit.
//
//     auto walk = unwind::walk(pid, tid);
//     if (walk && walk->judge(finding.at) == unwind::Word::stale) ... it does not hold anything back
//
// Roles      The tool alone; the process is only read (/proc/PID/mem, /proc/PID/task/TID).
// Invariants U1 Every frame up to `proven_end` follows from CFI and from registers that are known: SP,
//               PC and arguments at first, and what frames have saved. No frame is guessed by frame
//               pointers or by looking for plausible words: where a register is needed that nobody
//               knows, the walk ends.
//            U2 The thread did not run during the walk: same run count before and after.
// Progress   A few microseconds a frame, after the process's libraries have been opened (milliseconds).
// Death      The thread or the process ends: ESRCH.
// Refuses    EAGAIN: the thread runs, or woke. EACCES, EPERM: no right to read the process.
// Checked by tests/unwind/walk_test.cpp
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.hpp"

namespace molt::unwind {

struct Frame {
  std::uint64_t pc = 0;
  std::uint64_t cfa = 0;          // where the caller's stack pointer is after the return
  std::uint64_t return_slot = 0;  // where its return address lies; 0: not on the stack
  bool is_signal = false;         // the kernel's frame of a signal handler
  std::string function;           // empty: no symbol
  std::uint64_t offset = 0;       // from the function's start
  std::string object;             // the file's path
};

enum class Word {
  live,   // the return address of a live frame
  stale,  // no return address: between proven frames, or below the stack pointer
  open,   // beyond what could be unwound: nothing is known
};

struct Walk {
  std::vector<Frame> frames;  // innermost first
  bool complete = false;      // to the thread's first frame
  std::string stopped;        // why not further; empty if complete
  std::uint64_t sp = 0;
  std::uint64_t proven_end = 0;  // words below it are decided
  std::uint64_t runs = 0;        // how often the thread had been put on a CPU; 0: not counted

  Word judge(std::uint64_t address) const;
};

// The loaded objects of a process, opened once for any number of walks. When the process has loaded
// or unloaded something since, open it again.
class Process {
 public:
  [[nodiscard]] static Result<Process> open(pid_t pid);
  Process(Process&&) noexcept;
  Process& operator=(Process&&) noexcept;
  ~Process();

  [[nodiscard]] Result<Walk> walk(pid_t tid);

 private:
  struct State;
  explicit Process(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// open() and walk() for one thread.
[[nodiscard]] Result<Walk> walk(pid_t pid, pid_t tid);

const char* to_text(Word word);

}  // namespace molt::unwind
