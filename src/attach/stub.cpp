#include "attach/stub.hpp"

#include <ucontext.h>

namespace molt::attach {

// rbx holds the frame, and, from the mapping on, r12 the shared pages; both survive calls.
//
// The thread's errno is kept: the program may look at it once its call has failed.
asm(R"(
  .pushsection .rodata
  .balign 16
  .local molt_stub_begin, molt_stub_helper, molt_stub_end
molt_stub_begin:
  cld
  mov $14, %eax              # rt_sigprocmask(SIG_SETMASK, all, null, 8)
  mov $2, %edi
  lea 48(%rbx), %rsi
  xor %edx, %edx
  mov $8, %r10d
  syscall
  mov $131, %eax             # sigaltstack(null, where rt_sigreturn takes it from)
  xor %edi, %edi
  lea 272(%rbx), %rsi
  syscall
  mov $9, %eax               # mmap(address, bytes, read and write,
  mov (%rbx), %rdi           #      MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED_NOREPLACE, -1, 0)
  mov 8(%rbx), %rsi
  mov $3, %edx
  mov $0x100022, %r10d
  mov $-1, %r8
  xor %r9d, %r9d
  syscall
  cmp (%rbx), %rax
  jne 1f
  mov %rax, %r12
  mov %rax, %rdi
  lea 64(%rbx), %rsi
  mov $144, %ecx
  rep movsb
  call *32(%rbx)             # __errno_location()
  mov %rax, %r13
  mov (%rax), %r14d
  lea 24(%r12), %rdi         # pthread_create(&thread, null, helper, shared)
  xor %esi, %esi
  mov 24(%rbx), %rdx
  mov %r12, %rcx
  call *16(%rbx)
  mov %r14d, (%r13)
  mov %eax, 32(%r12)
  movl $1, 36(%r12)
1:
  lea 256(%rbx), %rsp        # rt_sigreturn
  mov $15, %eax
  syscall
  ud2

molt_stub_helper:
  push %rbx
  push %rbp
  sub $8, %rsp
  mov %rdi, %rbx
  call *8(%rbx)              # pthread_detach(pthread_self())
  mov %rax, %rdi
  call *16(%rbx)
2:
  xor %ebp, %ebp
  mov 132(%rbx), %eax
  mov %rax, 120(%rbx)
3:
  mov 40(%rbx), %eax
  cmp %eax, 44(%rbx)
  jne 4f
  mov $35, %eax              # nanosleep(nap, null)
  lea 112(%rbx), %rdi
  xor %esi, %esi
  syscall
  mov 120(%rbx), %rax
  add %rax, %rbp             # slept so far
  mov %rax, %rcx
  shr $5, %rcx
  add %rcx, %rax
  mov $10000000, %ecx
  cmp %rcx, %rax
  cmova %rcx, %rax
  mov %rax, 120(%rbx)
  mov %rbp, %rcx
  shr $10, %rcx
  cmp 128(%rbx), %ecx
  jb 3b
  add $8, %rsp
  pop %rbp
  pop %rbx
  xor %eax, %eax
  ret
4:
  mov 48(%rbx), %rax
  test %rax, %rax
  jz 5f
  mov 56(%rbx), %rdi
  mov 64(%rbx), %rsi
  mov 72(%rbx), %rdx
  mov 80(%rbx), %rcx
  mov 88(%rbx), %r8
  mov 96(%rbx), %r9
  call *%rax
  mov %rax, 104(%rbx)
  mov 40(%rbx), %eax
  mov %eax, 44(%rbx)
  jmp 2b
5:
  mov %rbx, %rdi             # munmap(shared, bytes), which returns to where this thread was begun
  mov (%rbx), %rsi
  mov 136(%rbx), %rax
  add $8, %rsp
  pop %rbp
  pop %rbx
  jmp *%rax
molt_stub_end:
  .popsection
)");

static_assert(offsetof(Frame, pthread_create) == 16 && offsetof(Frame, helper) == 24 &&
              offsetof(Frame, errno_location) == 32 && offsetof(Frame, all_signals) == 48 &&
              offsetof(Frame, shared) == 64);
static_assert(offsetof(Shared, pthread_self) == 8 && offsetof(Shared, pthread_detach) == 16 &&
              offsetof(Shared, thread) == 24 && offsetof(Shared, create_result) == 32 &&
              offsetof(Shared, created) == 36 && offsetof(Shared, command) == 40 &&
              offsetof(Shared, done) == 44 && offsetof(Shared, function) == 48 &&
              offsetof(Shared, arguments) == 56 && offsetof(Shared, result) == 104 &&
              offsetof(Shared, nap) == 112 && offsetof(Shared, patience) == 128 &&
              offsetof(Shared, first_nap) == 132 && offsetof(Shared, munmap) == 136);
static_assert(sizeof(Frame) <= context_offset &&
              context_offset + offsetof(ucontext_t, uc_stack) == 272 &&
              context_offset + offsetof(ucontext_t, uc_sigmask) + 8 <= vectors_offset);

extern "C" {
extern const std::byte molt_stub_begin[];
extern const std::byte molt_stub_helper[];
extern const std::byte molt_stub_end[];
}

Stub stub() {
  return {{molt_stub_begin, static_cast<std::size_t>(molt_stub_end - molt_stub_begin)},
          0,
          static_cast<std::size_t>(molt_stub_helper - molt_stub_begin)};
}

}  // namespace molt::attach
