// vector_state.hpp - inside of this layer: assembly that keeps x87, vector and mask registers over a
// call. Between the two, %rsp is the area's, aligned to 64; the frame's end is the user's. Uses %rax and
// %rdx. How large the area is, and which components there are, gate_setup() has measured.
//
// xsave leaves what it does not write of its header as it finds it: that is cleared.
#pragma once

// clang-format off
#define MOLT_SAVE_VECTORS \
  "subq molt_gate_state_size(%rip), %rsp\n" \
  "andq $-64, %rsp\n" \
  "movl molt_gate_state_mask(%rip), %eax\n" \
  "xorl %edx, %edx\n" \
  "testl %eax, %eax\n" \
  "je 1f\n" \
  "movq %rdx, 512(%rsp)\n" \
  "movq %rdx, 520(%rsp)\n" \
  "movq %rdx, 528(%rsp)\n" \
  "movq %rdx, 536(%rsp)\n" \
  "movq %rdx, 544(%rsp)\n" \
  "movq %rdx, 552(%rsp)\n" \
  "movq %rdx, 560(%rsp)\n" \
  "movq %rdx, 568(%rsp)\n" \
  "cmpl $0, molt_gate_compact(%rip)\n" \
  "je 2f\n" \
  "xsavec (%rsp)\n" \
  "jmp 3f\n" \
  "2: xsave (%rsp)\n" \
  "jmp 3f\n" \
  "1: fxsave (%rsp)\n" \
  "3:\n"

// `xrstor`: the instruction, which tests leave out.
#define MOLT_RESTORE_VECTORS(xrstor) \
  "movl molt_gate_state_mask(%rip), %eax\n" \
  "xorl %edx, %edx\n" \
  "testl %eax, %eax\n" \
  "je 1f\n" \
  xrstor "\n" \
  "jmp 2f\n" \
  "1: fxrstor (%rsp)\n" \
  "2:\n"
// clang-format on
