// The slow way through a gate: from a stub's `pushq record; jmp`, with the stack
//
//     8(%rsp)   return address of the patched function's caller
//      (%rsp)   GateRecord*
//
// to record->resolve(record, %rsp + 8) and on to one of the record's exits, with every register as it was.
// %rbx and %r12 to %r15 are the callee's to keep and stay where they are.
//
// Frame, from %rbp:   8 record, later the exit   0 old %rbp   -8 ... -72 rax rcx rdx rsi rdi r8 r9 r10
// r11   below, 64-byte aligned: x87, vector and mask registers. The flags are gone already (gate.hpp, G1);
// the direction flag is clear, as the ABI has it at a call.

#include "arch/x86_64/gate.hpp"
#include "arch/x86_64/vector_state.hpp"

static_assert(offsetof(molt::arch::GateRecord, resolve) == 0 &&
              offsetof(molt::arch::GateRecord, exits) == 32);

#ifdef MOLT_MUTATE_NO_STATE
#define RESTORE "nop"
#else
#define RESTORE "xrstor (%rsp)"
#endif

asm(R"(
        .text
        .balign 16
        .globl molt_gate_slow
        .hidden molt_gate_slow
        .type molt_gate_slow, @function
molt_gate_slow:
        .cfi_startproc
        .cfi_def_cfa_offset 16
        pushq %rbp
        .cfi_def_cfa_offset 24
        .cfi_offset %rbp, -24
        movq %rsp, %rbp
        .cfi_def_cfa %rbp, 24
        pushq %rax
        pushq %rcx
        pushq %rdx
        pushq %rsi
        pushq %rdi
        pushq %r8
        pushq %r9
        pushq %r10
        pushq %r11
)" MOLT_SAVE_VECTORS R"(
        movq 8(%rbp), %rdi
        leaq 16(%rbp), %rsi
        call *(%rdi)
        movl %eax, %eax
        movq 8(%rbp), %rdi
        movq 32(%rdi,%rax,8), %rax
        movq %rax, 8(%rbp)
)" MOLT_RESTORE_VECTORS(RESTORE) R"(
        leaq -72(%rbp), %rsp
        popq %r11
        popq %r10
        popq %r9
        popq %r8
        popq %rdi
        popq %rsi
        popq %rdx
        popq %rcx
        popq %rax
        popq %rbp
        .cfi_def_cfa %rsp, 16
        .cfi_restore %rbp
        leaq 8(%rsp), %rsp
        .cfi_def_cfa_offset 8
        notrack jmp *-8(%rsp)
        .cfi_endproc
        .size molt_gate_slow, . - molt_gate_slow
        .globl molt_gate_slow_end
        .hidden molt_gate_slow_end
molt_gate_slow_end:
        nop
)");
