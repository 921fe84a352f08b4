#include "arch/x86_64/instruction.hpp"

#include <Zydis/Zydis.h>

namespace molt::arch {
namespace {

Flow flow_of(const ZydisDecodedInstruction& decoded, bool relative) {
  switch (decoded.mnemonic) {
    case ZYDIS_MNEMONIC_LOOP:
    case ZYDIS_MNEMONIC_LOOPE:
    case ZYDIS_MNEMONIC_LOOPNE:
    case ZYDIS_MNEMONIC_JCXZ:
    case ZYDIS_MNEMONIC_JECXZ:
    case ZYDIS_MNEMONIC_JRCXZ:
      return Flow::counted;
    case ZYDIS_MNEMONIC_XBEGIN:
      return Flow::next;
    case ZYDIS_MNEMONIC_UD0:
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD2:
    case ZYDIS_MNEMONIC_HLT:
    case ZYDIS_MNEMONIC_INT3:
      return Flow::stop;
    default:
      break;
  }
  switch (decoded.meta.category) {
    case ZYDIS_CATEGORY_CALL:
      return relative ? Flow::call : Flow::call_indirect;
    case ZYDIS_CATEGORY_UNCOND_BR:
      return relative ? Flow::jump : Flow::jump_indirect;
    case ZYDIS_CATEGORY_COND_BR:
      return Flow::branch;
    case ZYDIS_CATEGORY_RET:
      return Flow::stop;
    default:
      return Flow::next;
  }
}

}  // namespace

bool decode(CodeAddress address, std::span<const std::byte> bytes, Instruction& out) {
  ZydisDecoder decoder;
  ZydisDecodedInstruction decoded;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  if (bytes.empty() ||
      !ZYAN_SUCCESS(ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64)) ||
      !ZYAN_SUCCESS(
          ZydisDecoderDecodeFull(&decoder, bytes.data(), bytes.size(), &decoded, operands))) {
    return false;
  }

  out = Instruction{};
  out.address = address;
  out.length = decoded.length;
  bool relative = decoded.raw.imm[0].is_relative;
  out.flow = flow_of(decoded, relative);
  // pause and endbr64 are encoded as NOPs, but do something.
  out.nop = decoded.mnemonic == ZYDIS_MNEMONIC_NOP;
  out.endbr64 = decoded.mnemonic == ZYDIS_MNEMONIC_ENDBR64;
  out.int3 = decoded.mnemonic == ZYDIS_MNEMONIC_INT3;
  out.modrm_offset = decoded.raw.modrm.offset;

  if (relative) {
    out.target = out.end() + static_cast<std::uint64_t>(decoded.raw.imm[0].value.s);
    out.has_target = true;
    out.condition = static_cast<std::uint8_t>(decoded.opcode & 0xf);
    // xbegin; and with an operand-size prefix AMD and Intel disagree on where a branch leads.
    out.fixed_here = out.flow == Flow::next;
    for (int i = 0; i < decoded.raw.prefix_count; ++i) {
      if (decoded.raw.prefixes[i].value == 0x66) out.fixed_here = true;
    }
  }
  if (decoded.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) out.fixed_here = true;
  for (const auto& imm : decoded.raw.imm) {
    if (imm.size != 0 && !imm.is_relative && imm.value.u > out.immediate) {
      out.immediate = imm.value.u;
    }
  }
  for (int i = 0; i < decoded.operand_count; ++i) {
    const ZydisDecodedOperand& operand = operands[i];
    if (operand.type != ZYDIS_OPERAND_TYPE_MEMORY) continue;
    if (operand.mem.base == ZYDIS_REGISTER_RIP) {
      out.rip_relative = true;
      out.disp_offset = decoded.raw.disp.offset;
      out.memory = out.end() + static_cast<std::uint64_t>(decoded.raw.disp.value);
    } else if (operand.mem.base == ZYDIS_REGISTER_EIP) {
      out.fixed_here = true;
    } else if (operand.mem.base == ZYDIS_REGISTER_RSP &&
               operand.visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT) {
      out.through_stack = true;
    }
  }
  return true;
}

}  // namespace molt::arch
