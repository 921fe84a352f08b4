#include "arch/x86_64/wrap.hpp"

#include <cstddef>

#include "arch/x86_64/emit.hpp"

extern "C" {
// wrap_enter.cpp
void molt_wrap_integers();
void molt_wrap_floats();
void molt_wrap_careful();
}

namespace molt::arch {

std::size_t write_wrap_stub(CodeAddress at, const WrapRecord& record, WrapKind kind,
                            std::span<std::byte> out) {
  const auto enter = kind == WrapKind::integers ? &molt_wrap_integers
                     : kind == WrapKind::floats ? &molt_wrap_floats
                                                : &molt_wrap_careful;
  Emitter code(at, out);
  code.bytes({0xff, 0x35});  // pushq record(%rip)
  const std::size_t record_hole = code.size();
  code.u32(0);
  const auto wrapper = reinterpret_cast<CodeAddress>(enter);
  const bool is_near = reaches(code.here() + 5, wrapper);
  std::size_t enter_hole = 0;
  if (is_near) {
    code.bytes({0xe9});
    code.rel32(wrapper);
  } else {
    code.bytes({0x3e, 0xff, 0x25});  // notrack jmp *enter(%rip)
    enter_hole = code.size();
    code.u32(0);
  }
  code.align(8, 0xcc);
  code.patch_rel32(record_hole, code.here());
  code.u64(reinterpret_cast<std::uint64_t>(&record));
  if (!is_near) {
    code.patch_rel32(enter_hole, code.here());
    code.u64(wrapper);
  }
  return code.overflowed() ? 0 : code.size();
}

}  // namespace molt::arch
