#include "arch/x86_64/displace.hpp"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "arch/x86_64/emit.hpp"
#include "arch/x86_64/instruction.hpp"
#include "arch/x86_64/refuse.hpp"

namespace molt::arch {
namespace {

// A call without a call instruction leaves the shadow stack short of one return address.
bool has_shadow_stack() {
#ifdef ARCH_SHSTK_STATUS
  constexpr int status = ARCH_SHSTK_STATUS;
#else
  constexpr int status = 0x5005;
#endif
  unsigned long features = 0;
  return syscall(SYS_arch_prctl, status, &features) == 0 && (features & 1) != 0;
}

class Displacer {
 public:
  Displacer(const Entry& entry, CodeAddress at, std::span<std::byte> out)
      : entry_(entry), code_(at, out) {}

  Result<std::size_t> run() {
    if (entry_.site != entry_.function) code_.bytes({0xf3, 0x0f, 0x1e, 0xfa});
    CodeAddress at = entry_.site, end = entry_.site + entry_.displaced;
    bool open = true;  // whether the copy is still to go on in the original
    while (at < end && open) {
      auto left = std::span(entry_.original).first(entry_.original_size).subspan(at - entry_.site);
      Instruction one;
      if (!decode(at, left, one)) {
        return refuse(Refusal::undecodable, "what was to be displaced is no instruction any more");
      }
      if (!one.nop) {
        if (auto done = move(one, left.first(one.length)); !done) return pass(done);
        open = one.flow == Flow::next || one.flow == Flow::branch || one.flow == Flow::counted;
      }
      at = one.end();
    }
    if (open) {
      code_.bytes({0xe9});
      code_.rel32(at);
    }
    if (literal_hole_ != 0) {
      code_.align(8, 0xcc);
      code_.patch_rel32(literal_hole_, code_.here());
      code_.u64(literal_);
    }
    if (!code_.all_reached()) {
      return refuse(Refusal::not_relocatable,
                    "what its first instructions refer to is too far away");
    }
    if (code_.overflowed()) return fail(EOVERFLOW, "no room for the displaced instructions");
    return code_.size();
  }

 private:
  Status move(const Instruction& one, std::span<const std::byte> bytes) {
    switch (one.flow) {
      case Flow::jump:
        code_.bytes({0xe9});
        code_.rel32(one.target);
        return {};
      case Flow::branch:
        code_.bytes({0x0f, static_cast<unsigned char>(0x80 | one.condition)});
        code_.rel32(one.target);
        return {};
      case Flow::counted:
        // Its distance, one byte, is its last.
        code_.bytes(bytes.first(bytes.size() - 1));
        code_.bytes({0x02, 0xeb, 0x05, 0xe9});
        code_.rel32(one.target);
        return {};
      case Flow::call:
      case Flow::call_indirect:
        return move_call(one, bytes);
      default:
        put(one, bytes);
        return {};
    }
  }

  // With the distance of its operand corrected.
  void put(const Instruction& one, std::span<const std::byte> bytes) {
    if (!one.rip_relative) {
      code_.bytes(bytes);
      return;
    }
    std::size_t behind = bytes.size() - one.disp_offset - 4u;
    code_.bytes(bytes.first(one.disp_offset));
    code_.rel32(one.memory, behind);
    code_.bytes(bytes.last(behind));
  }

  Status move_call(const Instruction& one, std::span<const std::byte> bytes) {
    if (has_shadow_stack()) {
      return refuse(Refusal::not_relocatable,
                    "its first instructions call, and this process has a shadow stack");
    }
    code_.bytes({0xff, 0x35});  // pushq literal(%rip)
    literal_hole_ = code_.size();
    literal_ = one.end();
    code_.u32(0);
    if (one.flow == Flow::call) {
      code_.bytes({0xe9});
      code_.rel32(one.target);
      return {};
    }
    // ff /2 is call, ff /4 is jmp, all else is the same.
    std::byte jump[15];
    std::copy(bytes.begin(), bytes.end(), jump);
    jump[one.modrm_offset] = (jump[one.modrm_offset] & std::byte{0xc7}) | std::byte{4 << 3};
    put(one, std::span<const std::byte>(jump).first(bytes.size()));
    return {};
  }

  const Entry& entry_;
  Emitter code_;
  std::size_t literal_hole_ = 0;
  std::uint64_t literal_ = 0;
};

}  // namespace

Result<std::size_t> displace(const Entry& entry, CodeAddress at, std::span<std::byte> out) {
  return Displacer(entry, at, out).run();
}

}  // namespace molt::arch
