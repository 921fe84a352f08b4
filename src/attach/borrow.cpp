#include "attach/borrow.hpp"

#include "attach/seccomp.hpp"
#include "attach/tracer.hpp"

#include <sys/user.h>
#include <time.h>
#include <ucontext.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

namespace molt::attach {

namespace {

constexpr std::size_t red_zone = 128;

// What the kernel appends to the vector registers in a signal frame, and looks for on return. Without
// it all but the oldest registers would be lost.
struct VectorsMark {
  std::uint32_t magic;
  std::uint32_t extended_bytes;
  std::uint64_t features;
  std::uint32_t bytes;
  std::uint32_t unused[7];
};
constexpr std::size_t vectors_mark_offset = 464;
constexpr std::uint32_t vectors_magic = 0x46505853;      // FP_XSTATE_MAGIC1
constexpr std::uint32_t vectors_end_magic = 0x46505845;  // FP_XSTATE_MAGIC2

// The whole frame as it is to lie at `address`. Of fixed size: made while nobody waits for it.
struct FrameBytes {
  std::array<std::byte, vectors_offset + most_vectors + 64> bytes = {};
  std::size_t size = 0;
};
void fill_frame(FrameBytes& to_fill, const Frame& frame, const Stopped& stopped,
                [[maybe_unused]] std::uint64_t address) {
  std::byte* const bytes = to_fill.bytes.data();
  to_fill.size = vectors_offset + stopped.vector_bytes + sizeof vectors_end_magic;
  std::memcpy(bytes, &frame, sizeof frame);

  ucontext_t context = {};
  context.uc_flags = 1 | 2 | 4;  // UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
  auto& to = context.uc_mcontext.gregs;
  const user_regs_struct& r = stopped.registers;
  to[REG_R8] = static_cast<greg_t>(r.r8);
  to[REG_R9] = static_cast<greg_t>(r.r9);
  to[REG_R10] = static_cast<greg_t>(r.r10);
  to[REG_R11] = static_cast<greg_t>(r.r11);
  to[REG_R12] = static_cast<greg_t>(r.r12);
  to[REG_R13] = static_cast<greg_t>(r.r13);
  to[REG_R14] = static_cast<greg_t>(r.r14);
  to[REG_R15] = static_cast<greg_t>(r.r15);
  to[REG_RDI] = static_cast<greg_t>(r.rdi);
  to[REG_RSI] = static_cast<greg_t>(r.rsi);
  to[REG_RBP] = static_cast<greg_t>(r.rbp);
  to[REG_RBX] = static_cast<greg_t>(r.rbx);
  to[REG_RDX] = static_cast<greg_t>(r.rdx);
  to[REG_RAX] = static_cast<greg_t>(r.rax);
  to[REG_RCX] = static_cast<greg_t>(r.rcx);
  to[REG_RSP] = static_cast<greg_t>(r.rsp);
  to[REG_RIP] = static_cast<greg_t>(r.rip);
  to[REG_EFL] = static_cast<greg_t>(r.eflags);
  to[REG_CSGSFS] = static_cast<greg_t>(r.cs | r.ss << 48);
#ifndef MOLT_MUTATE_NO_VECTORS
  context.uc_mcontext.fpregs = reinterpret_cast<fpregset_t>(address + vectors_offset);
#endif
  std::memcpy(&context.uc_sigmask, &stopped.signal_mask, sizeof stopped.signal_mask);
  // The rest of ucontext_t is glibc's own.
  std::memcpy(bytes + context_offset, &context, offsetof(ucontext_t, uc_sigmask) + 8);

  std::byte* vectors = bytes + vectors_offset;
  std::memcpy(vectors, stopped.vectors.data(), stopped.vector_bytes);
  VectorsMark mark = {};
  // ptrace has put the features that this kernel saves there.
  std::memcpy(&mark.features, vectors + vectors_mark_offset, sizeof mark.features);
  mark.magic = vectors_magic;
  mark.bytes = static_cast<std::uint32_t>(stopped.vector_bytes);
  mark.extended_bytes = mark.bytes + sizeof vectors_end_magic;
  std::memcpy(vectors + vectors_mark_offset, &mark, sizeof mark);
  std::memcpy(vectors + stopped.vector_bytes, &vectors_end_magic, sizeof vectors_end_magic);
}

// The rest, for a thread that stands before its call.
Result<Loan> send(Tracer& tracer, const Target& target, pid_t tid, Stopped& stopped,
                  FrameBytes& filled, std::uint64_t code, const Frame& frame, double begin) {
  const Stub pieces = stub();
  const user_regs_struct& r = stopped.registers;
  if (!tracer.get_rest(stopped)) return fail(EAGAIN, "thread %d has ended", tid);
  const std::size_t room = vectors_offset + stopped.vector_bytes + 64;
  const std::uint64_t at = (r.rsp - red_zone - room) & ~std::uint64_t{63};
  fill_frame(filled, frame, stopped, at);
  if (!target.write(at, std::span(filled.bytes).first(filled.size))) {
    return fail(EAGAIN, "the stack of thread %d cannot be written", tid);
  }
  user_regs_struct entry = r;
  entry.rip = code + pieces.borrow;
  entry.rsp = at;
  entry.rbx = at;
  if (!tracer.set(entry)) return fail(EAGAIN, "thread %d has ended", tid);  // B1, second step
  tracer.let_go();                                                          // B2
  return Loan{now_us() - begin};
}

Result<Loan> borrow_here(const Target& target, const Victim& victim, std::uint64_t code,
                         const Frame& frame) {
  Tracer tracer(victim.tid);
  if (auto done = tracer.seize(); !done) return pass(done);
  const Stub pieces = stub();
  if (auto done = target.write_code(code, pieces.code); !done) return pass(done);

  const bool is_filtered = has_filters(target.pid(), victim.tid);
  auto stopped = std::make_unique<Stopped>();
  auto filled = std::make_unique<FrameBytes>();
  auto is_stopped = tracer.stop();
  const double begin = now_us();
  if (!is_stopped) return pass(is_stopped);
  if (!*is_stopped) return fail(EAGAIN, "thread %d woke up", victim.tid);
  user_regs_struct& r = stopped->registers;
  if (!tracer.get(r)) return fail(EAGAIN, "thread %d has ended", victim.tid);
  if (static_cast<long>(r.orig_rax) < 0 || !is_interrupted(r)) {
    return fail(EAGAIN, "thread %d woke up", victim.tid);  // B3
  }
  // B1, first step. From now on the interruption has left no trace.
  const bool same = static_cast<long>(r.orig_rax) == victim.shown_call() &&
                    r.rip == victim.instruction && r.rsp == victim.stack_pointer;
  if (same) r.orig_rax = static_cast<std::uint64_t>(victim.call);
#ifdef MOLT_MUTATE_NO_REWIND
  r.orig_rax = ~0ull;
  if (!tracer.set(r)) return fail(EAGAIN, "thread %d has ended", victim.tid);
#else
  if ((same || static_cast<long>(r.rax) == -EINTR) && !tracer.rewind(r)) {
    return fail(EAGAIN, "thread %d has ended", victim.tid);
  }
#endif
  if (!same) return fail(EAGAIN, "thread %d woke up", victim.tid);
  // The thread that is made here inherits its filters.
  if (is_filtered) {
    if (auto allowed = check_filters(victim.tid); !allowed) return pass(allowed);
  }

  return send(tracer, target, victim.tid, *stopped, *filled, code, frame, begin);
}

constexpr int most_calls = 200;

// To the thread's next call. One that sleeps in an unsuitable one is not waited for; one that wants to
// run may get the processor late, on a busy machine.
bool follow_to_call(Tracer& tracer, const Target& target, pid_t tid, double until_us) {
  constexpr double piece_us = 50e3;
  while (!tracer.run_to_call(piece_us)) {
    if (tracer.has_ended() || now_us() > until_us || asleep(target, tid) || nobody_waits()) {
      return false;
    }
  }
  return true;
}

// The same for a thread that runs: at the entry of its next call that will do, before anything of it
// is done.
Result<Loan> borrow_at_call_here(const Target& target, pid_t tid, std::uint64_t code,
                                 const Frame& frame, double patience_us) {
  // Instead of the call that is not made now its filter would be asked about one that does not exist.
  if (has_filters(target.pid(), tid)) return fail(EAGAIN, "thread %d has a seccomp filter", tid);
  Tracer tracer(tid);
  if (auto done = tracer.seize(); !done) return pass(done);
  if (auto done = target.write_code(code, stub().code); !done) return pass(done);
  auto stopped = std::make_unique<Stopped>();
  auto filled = std::make_unique<FrameBytes>();
  auto is_stopped = tracer.stop();
  if (!is_stopped) return pass(is_stopped);
  user_regs_struct& r = stopped->registers;
  if (!*is_stopped || !tracer.get(r)) return fail(EAGAIN, "thread %d is busy", tid);
  if (static_cast<long>(r.orig_rax) >= 0 && static_cast<long>(r.rax) == -EINTR &&
      !tracer.rewind(r)) {
    return fail(EAGAIN, "thread %d has ended", tid);
  }
  const double until = now_us() + patience_us;
  for (int i = 0; i < most_calls; ++i) {
    if (!follow_to_call(tracer, target, tid, until)) break;
    const double begin = now_us();
    if (!tracer.get(r)) break;
    Victim victim;
    victim.tid = tid;
    victim.call = static_cast<long>(r.orig_rax);
    victim.arguments = {r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9};
    victim.stack_pointer = r.rsp;
    victim.instruction = r.rip;
    if (!may_be_borrowed(target, victim, stack_needed)) continue;
    // B1, first step: the call is not made now, but when the thread is back.
    if (!tracer.rewind(r)) break;
    return send(tracer, target, tid, *stopped, *filled, code, frame, begin);
  }
  return fail(EAGAIN, "thread %d made no plain system call in time", tid);
}

}  // namespace

Result<Loan> borrow_at_call(const Target& target, pid_t tid, std::uint64_t code, const Frame& frame,
                            double patience_us) {
  return traced<Loan>([&] { return borrow_at_call_here(target, tid, code, frame, patience_us); });
}

Result<Loan> borrow(const Target& target, const Victim& victim, std::uint64_t code,
                    const Frame& frame) {
  return traced<Loan>([&] { return borrow_here(target, victim, code, frame); });
}

}  // namespace molt::attach
