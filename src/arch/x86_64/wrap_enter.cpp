// The wrapper itself. It is entered by a stub's `pushq record; jmp`, with the stack
//
//     8(%rsp)   return address of the hooked function's caller; above it arguments
//      (%rsp)   WrapRecord*; careful: later where to go on
//
// Frame, from %rbp:   8 record   0 old %rbp   below: what follows, %rsp at its molt_call
//
//     0 .. 47     %rdi %rsi %rdx %rcx %r8 %r9          molt_call.integers
//    48 .. 111    low halves of %xmm0 .. %xmm7         molt_call.floats
//   112 result   120 float_result   128 stack   136 -   144 error
//   152 %rax    160 %r10   168 %r11   176 careful: where to go on   184 %rdx
//   192 .. 247  careful: %rcx %rsi %rdi %r8 %r9 %r10 %r11 as the original left them

#include "arch/x86_64/vector_state.hpp"
#include "arch/x86_64/wrap.hpp"

static_assert(offsetof(molt_call, integers) == 0 && offsetof(molt_call, floats) == 48 &&
              offsetof(molt_call, result) == 112 && offsetof(molt_call, float_result) == 120 &&
              offsetof(molt_call, stack) == 128 && offsetof(molt_call, reserved) == 136 &&
              offsetof(molt_call, error) == 144 && sizeof(molt_call) == 152);
static_assert(offsetof(molt::arch::WrapRecord, before) == 0 &&
              offsetof(molt::arch::WrapRecord, after) == 8 &&
              offsetof(molt::arch::WrapRecord, original) == 16 &&
              offsetof(molt::arch::WrapRecord, stack_words) == 24 &&
              offsetof(molt::arch::WrapRecord, gives_float) == 32 &&
              offsetof(molt::arch::WrapRecord, before_hook) + offsetof(molt_hook, chain) == 40 &&
              offsetof(molt::arch::WrapRecord, after_hook) + offsetof(molt_hook, chain) == 72);

// Tests break these lines and must see it.
#ifdef MOLT_MUTATE_WRAP_NO_AL
#define GIVE_RAX "        nop\n"
#else
#define GIVE_RAX "        movq 152(%rsp), %rax\n"
#endif
#ifdef MOLT_MUTATE_WRAP_NO_VECTORS
#define RESTORE_VECTORS "nop"
#else
#define RESTORE_VECTORS "xrstor (%rsp)"
#endif

#ifdef MOLT_MUTATE_WRAP_CARRIES
#define GO_ON "        movq 16(%r11), %r11\n        notrack jmp *%r11\n"
#define GO_IN "        movq 16(%r11), %r11\n        call *%r11\n"
#else
#define GO_ON "        notrack jmp *16(%r11)\n"
#define GO_IN "        call *16(%r11)\n"
#endif

asm(R"(
        .text

        .macro molt_wrap_give_arguments floats careful
        movq 0(%rsp), %rdi
        movq 8(%rsp), %rsi
        movq 16(%rsp), %rdx
        movq 24(%rsp), %rcx
        movq 32(%rsp), %r8
        movq 40(%rsp), %r9
        .if \floats
        movsd 48(%rsp), %xmm0
        movsd 56(%rsp), %xmm1
        movsd 64(%rsp), %xmm2
        movsd 72(%rsp), %xmm3
        movsd 80(%rsp), %xmm4
        movsd 88(%rsp), %xmm5
        movsd 96(%rsp), %xmm6
        movsd 104(%rsp), %xmm7
        .endif
        .if \floats + \careful
)" GIVE_RAX R"(
        .endif
        .if \careful
        movq 160(%rsp), %r10
        movq 168(%rsp), %r11
        .endif
        .endm

        // W6. To an exported function %r11 means nothing; the careful one cannot spare it.
        .macro molt_wrap_go_in careful
        .if \careful
        call *-72(%rbp)
        .else
)" GO_IN R"(
        .endif
        .endm

        // In the careful one vector registers are what they were: a move would clear upper halves.
        .macro molt_wrap name floats careful
        .set molt_wrap_moves, \floats * (1 - \careful)
        .balign 64
        .globl \name
        .hidden \name
        .type \name, @function
\name:
        .cfi_startproc
        .cfi_def_cfa_offset 16
        pushq %rbp
        .cfi_def_cfa_offset 24
        .cfi_offset %rbp, -24
        movq %rsp, %rbp
        .cfi_def_cfa %rbp, 24
        subq $248, %rsp
        movq %rdi, 0(%rsp)
        movq 8(%rbp), %rdi
        movq %rsi, 8(%rsp)
        movq %rdx, 16(%rsp)
        movq %rcx, 24(%rsp)
        movq %r8, 32(%rsp)
        movq %r9, 40(%rsp)
        .if \floats
        movsd %xmm0, 48(%rsp)
        movsd %xmm1, 56(%rsp)
        movsd %xmm2, 64(%rsp)
        movsd %xmm3, 72(%rsp)
        movsd %xmm4, 80(%rsp)
        movsd %xmm5, 88(%rsp)
        movsd %xmm6, 96(%rsp)
        movsd %xmm7, 104(%rsp)
        .endif
        .if \floats + \careful
        movq %rax, 152(%rsp)
        .endif
        .if \careful
        movq %r10, 160(%rsp)
        movq %r11, 168(%rsp)
        .endif
        leaq 24(%rbp), %rax
        movq %rax, 128(%rsp)
        movq %rsp, %rsi
        cmpq $0, 40(%rdi)
        je 1f
        .if \careful
        movq (%rdi), %rax
        call molt_wrap_saved
        .else
        call *(%rdi)
        .endif
        movq 8(%rbp), %rdi
        cmpl $1, %eax
        ja 4f
        je 2f

        // pass
3:
        .if \careful
        movq 16(%rdi), %rdx
        movq %rdx, 8(%rbp)
        .else
        movq %rdi, %r11
        .endif
        molt_wrap_give_arguments molt_wrap_moves \careful
        .cfi_remember_state
        leave
        .cfi_def_cfa %rsp, 16
        .cfi_restore %rbp
        leaq 8(%rsp), %rsp
        .cfi_def_cfa_offset 8
        .if \careful
        notrack jmp *-8(%rsp)
        .else
)" GO_ON R"(
        .endif
        .cfi_restore_state

        // nothing before it
1:      cmpq $0, 72(%rdi)
        je 3b

        // watch
2:      movq 24(%rdi), %rcx
        .if \careful
        movq 16(%rdi), %rdx
        movq %rdx, 176(%rsp)
        .else
        movq %rdi, %r11
        .endif
        testq %rcx, %rcx
        jne 5f
        molt_wrap_give_arguments molt_wrap_moves \careful
        molt_wrap_go_in \careful
6:      leaq -248(%rbp), %rsp
        movq %rax, 112(%rsp)
        movsd %xmm0, 120(%rsp)
        movq %rdx, 184(%rsp)
        .if \careful
        movq %rcx, 192(%rsp)
        movq %rsi, 200(%rsp)
        movq %rdi, 208(%rsp)
        movq %r8, 216(%rsp)
        movq %r9, 224(%rsp)
        movq %r10, 232(%rsp)
        movq %r11, 240(%rsp)
        .endif
        movq 8(%rbp), %rdi
        movq %rsp, %rsi
        .if \careful
        movq 8(%rdi), %rax
        call molt_wrap_saved
        movq 192(%rsp), %rcx
        movq 200(%rsp), %rsi
        movq 208(%rsp), %rdi
        movq 216(%rsp), %r8
        movq 224(%rsp), %r9
        movq 232(%rsp), %r10
        movq 240(%rsp), %r11
        .else
        call *8(%rdi)
        .endif
        movq 184(%rsp), %rdx
7:
        .if \careful
        movq 8(%rbp), %rax
        cmpl $0, 32(%rax)
        movq 112(%rsp), %rax
        je 9f
        .else
        movq 112(%rsp), %rax
        .endif
        movsd 120(%rsp), %xmm0
9:
        .cfi_remember_state
        leave
        .cfi_def_cfa %rsp, 16
        .cfi_restore %rbp
        leaq 8(%rsp), %rsp
        .cfi_def_cfa_offset 8
        ret
        .cfi_restore_state

4:      // answer
        .if \careful
        movq 16(%rsp), %rdx
        movq 24(%rsp), %rcx
        movq 8(%rsp), %rsi
        movq 0(%rsp), %rdi
        movq 32(%rsp), %r8
        movq 40(%rsp), %r9
        movq 160(%rsp), %r10
        movq 168(%rsp), %r11
        .endif
        jmp 7b

5:      // watch, with arguments on the stack: a copy of them, aligned as the originals are
        movq %rsp, %rsi
        leaq 1(%rcx), %rax
        andq $-2, %rax
        shlq $3, %rax
        subq %rax, %rsp
        movq 128(%rsi), %rdi
8:      movq -8(%rdi,%rcx,8), %rax
        movq %rax, -8(%rsp,%rcx,8)
        decq %rcx
        jne 8b
        movq 0(%rsi), %rdi
        movq 16(%rsi), %rdx
        movq 24(%rsi), %rcx
        movq 32(%rsi), %r8
        movq 40(%rsi), %r9
        .if molt_wrap_moves
        movsd 48(%rsi), %xmm0
        movsd 56(%rsi), %xmm1
        movsd 64(%rsi), %xmm2
        movsd 72(%rsi), %xmm3
        movsd 80(%rsi), %xmm4
        movsd 88(%rsi), %xmm5
        movsd 96(%rsi), %xmm6
        movsd 104(%rsi), %xmm7
        .endif
        .if \floats + \careful
        movq 152(%rsi), %rax
        .endif
        .if \careful
        movq 160(%rsi), %r10
        movq 168(%rsi), %r11
        .endif
        movq 8(%rsi), %rsi
        molt_wrap_go_in \careful
        jmp 6b
        .cfi_endproc
        .size \name, . - \name
        .endm

        molt_wrap molt_wrap_integers 0 0
        molt_wrap molt_wrap_floats 1 0
        molt_wrap molt_wrap_careful 1 1

        // Calls %rax with %rdi and %rsi, and keeps the vector state over it. The integer registers are
        // the wrapper's business.
        .balign 16
        .type molt_wrap_saved, @function
molt_wrap_saved:
        .cfi_startproc
        pushq %rbp
        .cfi_def_cfa_offset 16
        .cfi_offset %rbp, -16
        movq %rsp, %rbp
        .cfi_def_cfa %rbp, 16
        movq %rax, %r10
)" MOLT_SAVE_VECTORS R"(
        call *%r10
        movl %eax, %r10d
)" MOLT_RESTORE_VECTORS(RESTORE_VECTORS) R"(
        movl %r10d, %eax
        leave
        .cfi_def_cfa %rsp, 8
        .cfi_restore %rbp
        ret
        .cfi_endproc
        .size molt_wrap_saved, . - molt_wrap_saved
)");
