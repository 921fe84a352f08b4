// instruction.hpp - one decoded instruction: what of it depends on where it lies.
//
// The only file beside its .cpp that knows which decoder is used. Reads no byte beyond those given;
// any thread; no memory.
#pragma once

#include <span>

#include "arch/x86_64/code.hpp"

namespace molt::arch {

enum class Flow : std::uint8_t {
  next,           // goes on behind itself
  jump,           // jmp rel
  branch,         // jcc rel
  counted,        // loop*, j*cxz rel8
  call,           // call rel
  jump_indirect,  // jmp *
  call_indirect,  // call *
  stop,           // ret, ud2, hlt, int3: what follows is not reached from here
};

struct Instruction {
  CodeAddress address = 0;
  std::uint8_t length = 0;
  Flow flow = Flow::next;
  bool nop = false;  // any length
  bool endbr64 = false;
  bool int3 = false;
  // Its meaning depends on its address in a way that is not described here (eip-relative, xbegin,
  // far and 16-bit transfers).
  bool fixed_here = false;
  bool has_target = false;     // flow is direct, `target` is where to
  bool rip_relative = false;   // a memory operand at `memory`, its disp32 at byte disp_offset
  bool through_stack = false;  // an indirect call or jump through memory at (%rsp...)
  std::uint8_t condition = 0;  // branch: the low four bits of its opcode
  std::uint8_t disp_offset = 0;
  std::uint8_t modrm_offset = 0;
  CodeAddress target = 0;
  CodeAddress memory = 0;
  std::uint64_t immediate = 0;  // the largest that is no branch's; 0 without one

  CodeAddress end() const { return address + length; }
};

// False: the bytes begin with no whole instruction.
[[nodiscard]] bool decode(CodeAddress address, std::span<const std::byte> bytes, Instruction& out);

}  // namespace molt::arch
