#include "arch/x86_64/gate.hpp"

#include <cpuid.h>
#include <string.h>

#include <algorithm>

#include "arch/x86_64/emit.hpp"

extern "C" {
// gate_slow.cpp
void molt_gate_slow();
extern const char molt_gate_slow_end;
// What slow() reads: bytes for the state, how to save it, which parts.
[[gnu::visibility("hidden")]] std::uint64_t molt_gate_state_size = 512 + 64;
[[gnu::visibility("hidden")]] std::uint32_t molt_gate_state_mask = 0;  // 0: no xsave
[[gnu::visibility("hidden")]] std::uint32_t molt_gate_compact = 0;
}

namespace molt::arch {
namespace {

// x87, SSE, AVX, and the three of AVX-512. Not PKRU, which restoring could change behind a signal
// handler's back, and not AMX tiles, which no compiler keeps over a call.
constexpr std::uint32_t argument_state = 0xe7;

// `notrack jmp *literal(%rip)`; the literal follows when the stub is complete.
constexpr std::initializer_list<unsigned char> jump_through = {0x3e, 0xff, 0x25};

// A jump that may be far: its literal is written behind the code, by finish().
class FarJumps {
 public:
  explicit FarJumps(Emitter& code) : code_(code) {}
  void jump(CodeAddress target) {
    if (reaches(code_.here() + 5, target)) {
      code_.bytes({0xe9});
      code_.rel32(target);
      return;
    }
    code_.bytes(jump_through);
    literal(target);
  }
  // The rel32 of an instruction that ends here and reads `value` from behind the code.
  void literal(std::uint64_t value) {
    holes_[count_] = code_.size();
    values_[count_++] = value;
    code_.u32(0);
  }
  void finish() {
    code_.align(8, 0xcc);
    for (std::size_t i = 0; i < count_; ++i) {
      code_.patch_rel32(holes_[i], code_.here());
      code_.u64(values_[i]);
    }
  }

 private:
  Emitter& code_;
  std::size_t count_ = 0;
  std::size_t holes_[6];
  std::uint64_t values_[6];
};

}  // namespace

void gate_setup() {
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & bit_OSXSAVE) == 0) return;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  std::uint32_t mask = low & argument_state;

  // The standard format has fixed places; compact needs no more.
  std::uint64_t size = 512 + 64;
  for (unsigned part = 2; part < 8; ++part) {
    if ((mask & (1u << part)) == 0) continue;
    __cpuid_count(0xd, part, eax, ebx, ecx, edx);
    size = std::max<std::uint64_t>(size, std::uint64_t{eax} + ebx);
  }
  __cpuid_count(0xd, 1, eax, ebx, ecx, edx);
  molt_gate_compact = (eax >> 1) & 1;  // xsavec
  molt_gate_state_size = size;
  molt_gate_state_mask = mask;
}

std::size_t write_gate(CodeAddress at, const GateWords& words, GateRecord& record,
                       std::span<std::byte> out) {
  Emitter code(at, out);
  FarJumps far(code);
  // One taken branch on the way to a version that is near, and none that is not taken but before it.
  auto if_equal = [&](std::uint32_t with, CodeAddress version) {
    code.bytes({0x64, 0x81, 0x3c, 0x25});  // cmpl $with, %fs:tls_offset
    code.u32(static_cast<std::uint32_t>(words.tls_offset));
    code.u32(with);
    if (reaches(code.here() + 6, version)) {
      code.bytes({0x0f, 0x84});  // je version
      code.rel32(version);
      return;
    }
    code.bytes({0x75, 0});  // jne
    std::size_t other = code.size() - 1;
    far.jump(version);
    code.patch_rel8(other, code.here());
  };
  // G4: slow() came here through the word under the stack pointer.
  auto wipe = [&] {
#ifndef MOLT_MUTATE_KEEP_STALE
    code.bytes({0x48, 0xc7, 0x44, 0x24, 0xf8, 0, 0, 0, 0});  // movq $0, -8(%rsp)
#endif
  };

#ifdef MOLT_MUTATE_CLOBBER_R11
  code.bytes({0x45, 0x31, 0xdb});  // xor %r11d, %r11d
#endif
  if_equal(words.take_new, record.new_code);
#ifdef MOLT_TORTURE_STEPS
  // Between the decision and the old version: nanosleep of 50 us, all registers kept.
  code.bytes({0x64, 0x81, 0x3c, 0x25});
  code.u32(static_cast<std::uint32_t>(words.tls_offset));
  code.u32(words.take_old);
  code.bytes({0x75, 0});
  const std::size_t not_old = code.size() - 1;
  code.bytes({0x50, 0x51, 0x57, 0x56, 0x41, 0x53});                 // push a, c, di, si, 11
  code.bytes({0x68, 0x50, 0xc3, 0, 0, 0x6a, 0, 0x48, 0x89, 0xe7});  // {0, 50000}: its address
  code.bytes({0x31, 0xf6, 0xb8, 0x23, 0, 0, 0, 0x0f, 0x05});        // nanosleep(., null)
  code.bytes({0x48, 0x83, 0xc4, 0x10, 0x41, 0x5b, 0x5e, 0x5f, 0x59, 0x58});
  far.jump(record.old_code);
  code.patch_rel8(not_old, code.here());
#else
  if_equal(words.take_old, record.old_code);
#endif
  code.bytes({0xff, 0x35});  // pushq record(%rip)
  far.literal(reinterpret_cast<std::uint64_t>(&record));
  code.bytes(jump_through);
  far.literal(reinterpret_cast<std::uint64_t>(&molt_gate_slow));

  auto exit_of = [&](GateVerdict verdict) -> CodeAddress& {
    return record.exits[static_cast<std::size_t>(verdict)];
  };
  exit_of(GateVerdict::again) = code.here();
  wipe();
  code.bytes({0xe9});
  code.rel32(at);
  exit_of(GateVerdict::take_old) = code.here();
  wipe();
  far.jump(record.old_code);
  exit_of(GateVerdict::take_new) = code.here();
  wipe();
  far.jump(record.new_code);
  far.finish();
  return code.overflowed() ? 0 : code.size();
}

std::size_t write_jump(CodeAddress at, CodeAddress target, std::span<std::byte> out) {
  Emitter code(at, out);
  FarJumps far(code);
  far.jump(target);
  if (code.size() > 5) far.finish();
  return code.overflowed() ? 0 : code.size();
}

std::size_t write_cell_jump(CodeAddress at, const CodeAddress* cell, std::span<std::byte> out) {
  Emitter code(at, out);
  code.bytes({0x3e, 0xff, 0x25});  // notrack jmp *cell(%rip)
  code.rel32(reinterpret_cast<CodeAddress>(cell));
  return code.overflowed() ? 0 : code.size();
}

CodeRange gate_slow_range() {
  return {reinterpret_cast<CodeAddress>(&molt_gate_slow),
          reinterpret_cast<CodeAddress>(&molt_gate_slow_end)};
}

}  // namespace molt::arch
