// tracer.hpp - one thread of another process, stopped for microseconds.
//
// Roles      A process of its own traces, in a session of its own: traced(). It is made for that, in this
//            program's memory and in the place of the thread that asks, which waits as after a vfork();
//            to copy the page tables of a program with dozens of threads takes longer than the rest.
//            It ends when it is done.
// Invariants E1 Whatever kills this program (a signal to it, or to its process group) does not kill the
//               tracer, which brings what it began to its end: nobody sees the interruption. The memory
//               stays for as long as one of the two is there.
// Progress   Bounded: what does not stop is let go after 10 s.
// Death      Of the tracer itself, by a signal that was meant for it: see borrow.hpp, Death.
// Checked by tests/attach (killed.*)
#pragma once

#include "base/result.hpp"

#include <sys/types.h>
#include <sys/user.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace molt::attach {

double now_us();

// Runs it in the tracing process and waits; false: no process could be made, or it died.
[[nodiscard]] bool in_tracing_process(const std::function<void()>& work);

// The result of `work`, which runs in the tracing process.
template <class T, class Work>
[[nodiscard]] Result<T> traced(const Work& work) {
  Result<T> result = fail(EAGAIN, "the process that traces for this one has ended");
  if (!in_tracing_process([&] { result = work(); })) {
    return fail(EAGAIN, "the process that traces for this one has ended");
  }
  return result;
}

inline constexpr std::size_t most_vectors = 16 << 10;

struct Stopped {
  user_regs_struct registers;
  std::uint64_t signal_mask = 0;
  std::array<std::byte, most_vectors> vectors;
  std::size_t vector_bytes = 0;
};

class Tracer {
 public:
  explicit Tracer(pid_t tid) : tid_(tid) {}
  ~Tracer() { let_go(); }
  Tracer(const Tracer&) = delete;
  Tracer& operator=(const Tracer&) = delete;

  Status seize();
  // Stops it. False: it is doing something else, and was left to it. On a busy machine it takes a
  // while until an interrupted thread runs and stops. To give it up then would show it the
  // interruption, so only what hangs in the kernel is given up.
  Result<bool> stop();
  // From a stop to its next system call: it stands at the entry, nothing of it is done. False: not
  // within `patience_us`, or it has ended; it runs on then, until this process ends. Signals on the
  // way reach it.
  bool run_to_call(double patience_us);
  bool has_ended() const { return !seized_; }
  bool get(user_regs_struct& registers) const;
  bool set(const user_regs_struct& registers) const;
  // The vector registers and the signal mask.
  bool get_rest(Stopped& stopped) const;
  bool get_mask(std::uint64_t& mask) const;
  bool set_mask(std::uint64_t mask) const;
  // Back to before the interrupted system call, which is still to be made.
  bool rewind(user_regs_struct& registers) const;
  void let_go();

 private:
  pid_t tid_;
  bool seized_ = false;
  bool stopped_ = false;
};

// The call was interrupted, and did nothing: it may be made again.
bool is_interrupted(const user_regs_struct& registers);

}  // namespace molt::attach
