#include "builder/relax.hpp"

#include "elf/read.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace molt::builder {
namespace {

using elf::View;

class Comparison {
 public:
  Comparison(const ObjectSection& section, const Linked& linked, std::vector<Reference>& references)
      : section_(section),
        linked_(linked),
        references_(references),
        expected_(section.bytes.begin(), section.bytes.end()) {}

  std::optional<Difference> run() {
    const auto& relocations = section_.relocations;
    for (std::uint32_t i = 0; i < relocations.size(); ++i) {
      if (relocations[i].offset < skip_to_) continue;
      if (!one(i)) return difference(std::max<std::uint64_t>(relocations[i].offset, 4) - 4);
    }
    if (std::ranges::equal(expected_, linked_.bytes)) return std::nullopt;
    return difference(0);
  }

 private:
  // The byte of the linked file at an offset; 0x100 outside.
  unsigned there(std::uint64_t offset) const {
    return offset < linked_.bytes.size() ? std::to_integer<unsigned>(linked_.bytes[offset]) : 0x100;
  }
  unsigned here(std::uint64_t offset) const {
    return offset < expected_.size() ? std::to_integer<unsigned>(expected_[offset]) : 0x100;
  }
  template <std::size_t N>
  bool there_is(std::uint64_t offset, const std::array<std::uint8_t, N>& bytes) const {
    for (std::size_t i = 0; i < N; ++i) {
      if (there(offset + i) != bytes[i]) return false;
    }
    return true;
  }
  // From here on these bytes are as in the linked file; whether that is right has been looked at.
  void take(std::uint64_t offset, std::uint64_t bytes) {
    if (!elf::within(offset, bytes, expected_.size())) return;
    std::copy_n(linked_.bytes.begin() + static_cast<std::ptrdiff_t>(offset), bytes,
                expected_.begin() + static_cast<std::ptrdiff_t>(offset));
  }
  std::int64_t field(std::uint64_t offset, unsigned width) const {
    switch (width) {
      case 1:
        return elf::read<std::int8_t>(linked_.bytes, offset).value_or(0);
      case 2:
        return elf::read<std::int16_t>(linked_.bytes, offset).value_or(0);
      case 4:
        return elf::read<std::int32_t>(linked_.bytes, offset).value_or(0);
      default:
        return elf::read<std::int64_t>(linked_.bytes, offset).value_or(0);
    }
  }
  std::int64_t address(std::uint64_t offset) const {
    return static_cast<std::int64_t>(linked_.address + offset);
  }
  void found(Reference::Kind kind, std::uint32_t relocation, std::int64_t value) {
    references_.push_back({kind, relocation, value});
  }

  std::optional<Difference> difference(std::uint64_t from) const {
    for (std::uint64_t i = from; i < expected_.size(); ++i) {
      if (here(i) == there(i)) continue;
      std::string theirs;
      std::string ours;
      for (std::uint64_t k = i; k < std::min<std::uint64_t>(i + 8, expected_.size()); ++k) {
        theirs += fmt::format("{}{:02x}", theirs.empty() ? "" : " ", there(k));
        ours += fmt::format("{}{:02x}", ours.empty() ? "" : " ", here(k));
      }
      return Difference{i, fmt::format("{} there, {} in this build", theirs, ours)};
    }
    return Difference{from, "a relocation that does not fit"};
  }

  bool one(std::uint32_t index) {
    const Relocation& relocation = section_.relocations[index];
    const std::uint64_t o = relocation.offset;
    const std::uint32_t type = relocation.type;
    if (type == R_X86_64_NONE) return true;
    if (type == R_X86_64_TLSDESC_CALL) {
      if (there(o) == 0x66 && there(o + 1) == 0x90) take(o, 2);
      return true;
    }
    const unsigned width = relocation_width(type);
    if (width == 0 || !elf::within(o, width, expected_.size())) return false;

    switch (type) {
      case R_X86_64_GOTPCREL:
      case R_X86_64_GOTPCRELX:
      case R_X86_64_REX_GOTPCRELX:
        return got_load(index, o, relocation.addend);
      case R_X86_64_TLSGD:
        return general_dynamic(index, o, relocation.addend);
      case R_X86_64_TLSLD:
        return local_dynamic(o);
      case R_X86_64_GOTTPOFF:
        return initial_exec(index, o, relocation.addend);
      case R_X86_64_GOTPC32_TLSDESC:
        return descriptor(index, o, relocation.addend);
      default:
        break;
    }
    if ((type == R_X86_64_64 || type == R_X86_64_DTPOFF64 || type == R_X86_64_TPOFF64) &&
        linked_.is_relocated(linked_.context, linked_.address + o)) {
      found(Reference::Kind::loader, index, address(o));
      take(o, width);
      return true;
    }
    std::int64_t value = field(o, width) - relocation.addend;
    Reference::Kind kind = Reference::Kind::address;
    switch (type) {
      case R_X86_64_TPOFF32:
      case R_X86_64_TPOFF64:
        kind = Reference::Kind::tls_offset;
        break;
      case R_X86_64_DTPOFF32:
      case R_X86_64_DTPOFF64:
        kind = local_is_exec_ && section_.is_code() ? Reference::Kind::tls_offset
                                                    : Reference::Kind::tls_block;
        break;
      case R_X86_64_GOTOFF64:
        value += static_cast<std::int64_t>(linked_.got);
        break;
      case R_X86_64_GOTPC32:
      case R_X86_64_GOTPC64:
      case R_X86_64_SIZE32:
      case R_X86_64_SIZE64:
        take(o, width);
        return true;
      case R_X86_64_32:
        value = static_cast<std::uint32_t>(field(o, width)) - relocation.addend;
        break;
      default:
        if (is_pc_relative(type)) value += address(o);
        break;
    }
    found(kind, index, value);
    take(o, width);
    return true;
  }

  bool got_load(std::uint32_t index, std::uint64_t o, std::int64_t addend) {
    const unsigned opcode = o >= 2 ? here(o - 2) : 0x100;
    const unsigned operands = o >= 1 ? here(o - 1) : 0x100;
    const unsigned rex = o >= 3 ? here(o - 3) : 0x100;
    if (o < 2 || (there(o - 2) == opcode && there(o - 1) == operands)) {
      found(Reference::Kind::slot, index, address(o) + field(o, 4) - addend);
      take(o, 4);
      return true;
    }
    const unsigned reg = (operands >> 3) & 7;
    const auto immediate = [&](unsigned new_opcode, unsigned extension) {
      if (there(o - 2) != new_opcode || there(o - 1) != (0xc0 | extension << 3 | reg)) return false;
      if ((rex & 0xf0) == 0x40 && there(o - 3) != rex) {
        // The register moves from ModRM.reg to ModRM.rm; W may go.
        const unsigned moved = (rex & ~4u) | ((rex & 4) != 0 ? 1 : 0);
        if (there(o - 3) != moved && there(o - 3) != (moved & ~8u)) return false;
        take(o - 3, 1);
      }
      found(Reference::Kind::address, index, field(o, 4) - addend - 4);
      take(o - 2, 6);
      return true;
    };
    if (opcode == 0x8b) {
      if (there(o - 2) == 0x8d && there(o - 1) == operands) {
        found(Reference::Kind::address, index, address(o) + field(o, 4) - addend);
        take(o - 2, 6);
        return true;
      }
      return immediate(0xc7, 0);
    }
    if (opcode == 0xff && operands == 0x15) {
      if (there(o - 2) == 0x67 && there(o - 1) == 0xe8) {
        found(Reference::Kind::address, index, address(o) + field(o, 4) + 4);
        take(o - 2, 6);
        return true;
      }
      if (there(o - 2) == 0xe8 && there(o + 3) == 0x90) {
        found(Reference::Kind::address, index, address(o - 1) + field(o - 1, 4) + 4);
        take(o - 2, 6);
        return true;
      }
      return false;
    }
    if (opcode == 0xff && operands == 0x25) {
      if (there(o - 2) != 0xe9 || there(o + 3) != 0x90) return false;
      found(Reference::Kind::address, index, address(o - 1) + field(o - 1, 4) + 4);
      take(o - 2, 6);
      return true;
    }
    if (opcode == 0x85) return immediate(0xf7, 0);
    // add, or, adc, sbb, and, sub, xor, cmp
    if ((opcode & 0xc7) == 0x03) return immediate(0x81, (opcode >> 3) & 7);
    return false;
  }

  // 16 bytes, the second half of which is the call of __tls_get_addr with a relocation of its own.
  bool general_dynamic(std::uint32_t index, std::uint64_t o, std::int64_t addend) {
    constexpr std::array<std::uint8_t, 12> to_local = {0x64, 0x48, 0x8b, 0x04, 0x25, 0,
                                                       0,    0,    0,    0x48, 0x8d, 0x80};
    constexpr std::array<std::uint8_t, 12> to_initial = {0x64, 0x48, 0x8b, 0x04, 0x25, 0,
                                                         0,    0,    0,    0x48, 0x03, 0x05};
    if (o >= 4 && there_is(o - 4, to_local)) {
      found(Reference::Kind::tls_offset, index, field(o + 8, 4));
    } else if (o >= 4 && there_is(o - 4, to_initial)) {
      found(Reference::Kind::tls_slot, index, address(o + 8) + field(o + 8, 4) + 4);
    } else {
      found(Reference::Kind::tls_pair, index, address(o) + field(o, 4) - addend);
      take(o, 4);
      return true;
    }
    take(o - 4, 16);
    skip_to_ = o + 12;
    return true;
  }

  bool local_dynamic(std::uint64_t o) {
    constexpr std::array<std::uint8_t, 12> to_local = {0x66, 0x66, 0x66, 0x64, 0x48, 0x8b,
                                                       0x04, 0x25, 0,    0,    0,    0};
    constexpr std::array<std::uint8_t, 13> to_local_far = {0x66, 0x66, 0x66, 0x66, 0x64, 0x48, 0x8b,
                                                           0x04, 0x25, 0,    0,    0,    0};
    const bool is_indirect = here(o + 4) == 0xff;
    const std::uint64_t bytes = is_indirect ? 13 : 12;
    const bool relaxed =
        o >= 3 && (is_indirect ? there_is(o - 3, to_local_far) : there_is(o - 3, to_local));
    local_is_exec_ = relaxed;
    if (relaxed) {
      take(o - 3, bytes);
      skip_to_ = o - 3 + bytes;
    } else {
      take(o, 4);
    }
    return true;
  }

  bool initial_exec(std::uint32_t index, std::uint64_t o, std::int64_t addend) {
    if (o < 3) return false;
    const unsigned opcode = here(o - 2);
    if (there(o - 2) == opcode && there(o - 1) == here(o - 1)) {
      found(Reference::Kind::tls_slot, index, address(o) + field(o, 4) - addend);
      take(o, 4);
      return true;
    }
    const unsigned reg = (here(o - 1) >> 3) & 7;
    const unsigned rex = here(o - 3);
    const unsigned moved = (rex & ~4u) | ((rex & 4) != 0 ? 1 : 0);
    const bool is_move = opcode == 0x8b && there(o - 2) == 0xc7 && there(o - 1) == (0xc0 | reg);
    const bool is_add = opcode == 0x03 && there(o - 2) == 0x81 && there(o - 1) == (0xc0 | reg);
    const bool is_lea =
        opcode == 0x03 && there(o - 2) == 0x8d && there(o - 1) == (0x80 | reg << 3 | reg);
    // `lea` keeps the register in both fields.
    const unsigned wanted = is_lea && (rex & 4) != 0 ? rex | 1 : moved;
    if (!(is_move || is_add || is_lea) || there(o - 3) != wanted) return false;
    found(Reference::Kind::tls_offset, index, field(o, 4));
    take(o - 3, 7);
    return true;
  }

  bool descriptor(std::uint32_t index, std::uint64_t o, std::int64_t addend) {
    constexpr std::array<std::uint8_t, 3> to_local = {0x48, 0xc7, 0xc0};
    constexpr std::array<std::uint8_t, 3> to_initial = {0x48, 0x8b, 0x05};
    if (o >= 3 && there_is(o - 3, to_local)) {
      found(Reference::Kind::tls_offset, index, field(o, 4));
    } else if (o >= 3 && there_is(o - 3, to_initial)) {
      found(Reference::Kind::tls_slot, index, address(o) + field(o, 4) + 4);
    } else {
      found(Reference::Kind::tls_pair, index, address(o) + field(o, 4) - addend);
      take(o, 4);
      return true;
    }
    take(o - 3, 7);
    return true;
  }

  const ObjectSection& section_;
  const Linked& linked_;
  std::vector<Reference>& references_;
  std::vector<std::byte> expected_;
  std::uint64_t skip_to_ = 0;
  bool local_is_exec_ = linked_.is_program;
};

}  // namespace

unsigned relocation_width(std::uint32_t type) {
  switch (type) {
    case R_X86_64_8:
    case R_X86_64_PC8:
      return 1;
    case R_X86_64_16:
    case R_X86_64_PC16:
      return 2;
    case R_X86_64_64:
    case R_X86_64_PC64:
    case R_X86_64_GOTOFF64:
    case R_X86_64_GOTPC64:
    case R_X86_64_DTPOFF64:
    case R_X86_64_TPOFF64:
    case R_X86_64_SIZE64:
      return 8;
    case R_X86_64_32:
    case R_X86_64_32S:
    case R_X86_64_PC32:
    case R_X86_64_PLT32:
    case R_X86_64_GOTPC32:
    case R_X86_64_SIZE32:
    case R_X86_64_DTPOFF32:
    case R_X86_64_TPOFF32:
    case R_X86_64_TLSGD:
    case R_X86_64_TLSLD:
    case R_X86_64_GOTTPOFF:
    case R_X86_64_GOTPC32_TLSDESC:
    case R_X86_64_GOTPCREL:
    case R_X86_64_GOTPCRELX:
    case R_X86_64_REX_GOTPCRELX:
      return 4;
    default:
      return 0;
  }
}

bool is_pc_relative(std::uint32_t type) {
  switch (type) {
    case R_X86_64_PC8:
    case R_X86_64_PC16:
    case R_X86_64_PC32:
    case R_X86_64_PC64:
    case R_X86_64_PLT32:
      return true;
    default:
      return false;
  }
}

std::optional<Difference> compare(const ObjectSection& section, const Linked& linked,
                                  std::vector<Reference>& references) {
  if (linked.bytes.size() != section.size) return Difference{0, "the file ends before"};
  return Comparison(section, linked, references).run();
}

}  // namespace molt::builder
