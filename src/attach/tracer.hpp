// tracer.hpp - one thread of another process, stopped for microseconds.
//
// Roles      A process of its own traces, in a session of its own: traced(). It is forked for that and
//            ends when it is done.
// Invariants E1 Whatever kills this program (a signal to it, or to its process group) does not kill the
//               tracer, which brings what it began to its end: nobody sees the interruption.
//            E2 Whatever kills the tracer leaves this program's memory as it was: the two share the
//               result alone. (Made by vfork(), and killed within malloc(), it left a broken heap.)
// Progress   Bounded: what does not stop is let go after 10 s, and who is only followed as soon as
//            nobody waits for the tracer any more.
// Death      Of the tracer itself, by a signal that was meant for it: see borrow.hpp, Death.
// Checked by tests/attach (killed.*, tracer_killed.*)
#pragma once

#include "base/result.hpp"

#include <sys/types.h>
#include <sys/user.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <new>
#include <type_traits>

namespace molt::attach {

double now_us();

// Runs it in a tracing process and waits; false: no process could be made, or it died.
[[nodiscard]] bool in_tracing_process(const std::function<void()>& work);

// In the tracing process: who asked for it has died.
bool nobody_waits();

// Who traces process or thread `id` now, and is no such process: of this program or another that does the same, which
// lets go in a moment. 0: nobody.
pid_t foreign_tracer(pid_t id);

// Memory that processes forked later share.
class SharedBytes {
 public:
  explicit SharedBytes(std::size_t bytes);
  ~SharedBytes();
  SharedBytes(const SharedBytes&) = delete;
  SharedBytes& operator=(const SharedBytes&) = delete;
  void* get() const { return at_; }  // nullptr: there was none

 private:
  void* at_;
  std::size_t bytes_;
};

// The result of `work`, which runs in a tracing process: of what it changes, that alone comes back.
template <class T, class Work>
[[nodiscard]] Result<T> traced(const Work& work) {
  static_assert(std::is_trivially_copyable_v<T>, "it comes from another process");
  const SharedBytes shared(sizeof(Result<T>));
  if (shared.get() == nullptr) return fail_errno(errno, "no memory for a tracing process");
  auto* const result = new (shared.get()) Result<T>(T{});
  if (!in_tracing_process([&] { *result = work(); })) {
    return fail(EAGAIN, "the process that traces for this one has ended");
  }
  return *result;
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
