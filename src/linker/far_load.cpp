#include "linker/far_load.hpp"

#include <algorithm>
#include <cstring>

namespace molt::linker {
namespace {

constexpr std::byte jump{0xe9}, nop{0x90}, load{0x8b};
constexpr std::size_t jump_size = 5;

void put_distance(std::byte* at, std::int64_t distance) {
  const auto value = static_cast<std::int32_t>(distance);
  std::memcpy(at, &value, sizeof value);
}

}  // namespace

std::optional<FarLoad> far_load_at(std::span<const std::byte> code, std::size_t field) {
  if (field < 2 || field + 4 > code.size() || code[field - 2] != load) return std::nullopt;
  const auto modrm = std::to_integer<unsigned>(code[field - 1]);
  if ((modrm & 0xc7) != 0x05) return std::nullopt;
  FarLoad found;
  found.begin = field - 2;
  found.end = field + 4;
  found.reg = static_cast<std::uint8_t>(modrm >> 3 & 7);
  // In front of an instruction without one lies another instruction's last byte, which may look like
  // one. Of a load of 64 bits it is there for certain, and the compiler's are all of pointers: others
  // are left alone.
  if (field < 3) return std::nullopt;
  const auto rex = std::to_integer<unsigned>(code[field - 3]);
  if ((rex & 0xf8) != 0x48) return std::nullopt;
  found.begin = field - 3;
  found.rex = static_cast<std::uint8_t>(rex);
  if ((rex & 4) != 0) found.reg = static_cast<std::uint8_t>(found.reg + 8);
  if (found.reg == 4) return std::nullopt;  // the stack pointer
  return found;
}

void write_far_load(const FarLoad& found, std::span<std::byte> instruction, std::int64_t at,
                    std::span<std::byte, far_load_size> stub, std::int64_t stub_at,
                    std::int64_t word_at) {
  const std::size_t size = found.end - found.begin;
  std::fill_n(instruction.begin(), size, nop);
  instruction[0] = jump;
  put_distance(&instruction[1], stub_at - (at + static_cast<std::int64_t>(jump_size)));

  const unsigned high = found.reg >= 8 ? 1u : 0u, low = found.reg & 7u;
  std::size_t n = 0;
  const auto emit = [&](unsigned byte) { stub[n++] = static_cast<std::byte>(byte); };
  emit(0x48 | high << 2);
  stub[n++] = load;
  emit(low << 3 | 5);
  n += 4;
  put_distance(&stub[n - 4], word_at - (stub_at + static_cast<std::int64_t>(n)));
  emit(0x48 | high << 2 | high);
  stub[n++] = load;
  emit(0x40 | low << 3 | low);  // with a displacement of 0: (%rbp) and (%r13) have no other form
  if (low == 4) emit(0x24);     // (%r12) goes by a second byte
  emit(0);
  stub[n++] = jump;
  n += 4;
  put_distance(&stub[n - 4],
               at + static_cast<std::int64_t>(size) - (stub_at + static_cast<std::int64_t>(n)));
}

}  // namespace molt::linker
