// Files that were cut off or damaged: whatever is in them, nothing outside the file is read, and
// what is not refused can be looked at. The bytes end at an inaccessible page.

#include "look.hpp"
#include "samples.hpp"

#include <algorithm>
#include <cerrno>
#include <random>

namespace molt::elf {
namespace {

// Was it accepted? A refusal must have a code and words.
bool look(std::span<const std::byte> bytes) {
  look_at_symbols(bytes);
  auto image = Image::parse(bytes, Purpose::examine);
  if (image) return look_at_everything(*image) != 0;
  EXPECT_TRUE(image.error().code == ENOEXEC || image.error().code == EINVAL);
  EXPECT_STRNE(image.error().detail, "");
  return false;
}

class Damage : public testing::TestWithParam<std::string> {};

TEST_P(Damage, cut_off_at_every_64th_byte) {
  NEEDS_SAMPLE(GetParam());
  auto bytes = contents(sample_path(GetParam()));
  FencedBytes fenced(bytes.size());
  EXPECT_TRUE(look(fenced.copy_of(bytes)));
  for (std::size_t size = 0; size < bytes.size(); size += 64) {
    EXPECT_FALSE(look(fenced.copy_of(std::span(bytes).first(size)))) << size;
  }
}

TEST_P(Damage, cut_off_without_section_headers) {
  NEEDS_SAMPLE(GetParam());
  auto bytes = contents(sample_path(GetParam()));
  std::memset(&bytes[offsetof(Elf64_Ehdr, e_shoff)], 0, sizeof(Elf64_Ehdr::e_shoff));
  FencedBytes fenced(bytes.size());
  std::size_t accepted = 0;
  for (std::size_t size = 0; size < bytes.size(); size += 64) {
    accepted += look(fenced.copy_of(std::span(bytes).first(size)));
  }
  // What lies behind the last segment is missed by nobody.
  EXPECT_LT(accepted, bytes.size() / 64);
}

// Bits are flipped where they hurt: in the headers, the dynamic table, symbols, hashes and notes,
// all of which are before the code, and anywhere.
TEST_P(Damage, flipped_bits) {
  NEEDS_SAMPLE(GetParam());
  const auto bytes = contents(sample_path(GetParam()));
  FencedBytes fenced(bytes.size());
  std::mt19937_64 random(20231121);
  std::size_t accepted = 0;
  constexpr std::size_t copies = 3000;
  for (std::size_t copy = 0; copy < copies; ++copy) {
    auto damaged = fenced.copy_of(bytes);
    const std::size_t flips = 1 + random() % 16;
    for (std::size_t flip = 0; flip < flips; ++flip) {
      const std::size_t reach = flip % 2 ? bytes.size() : std::min<std::size_t>(bytes.size(), 4096);
      damaged[random() % reach] ^= std::byte(1 << random() % 8);
    }
    accepted += look(damaged);
  }
  // Both outcomes have to occur, or the test looks at nothing.
  EXPECT_GT(accepted, copies / 100);
  EXPECT_LT(accepted, copies * 99 / 100);
}

// Whole words set to the values at which sums wrap around.
TEST_P(Damage, extreme_words) {
  NEEDS_SAMPLE(GetParam());
  const auto bytes = contents(sample_path(GetParam()));
  FencedBytes fenced(bytes.size());
  const std::uint64_t extremes[] = {0,
                                    1,
                                    0x7fffffffffffffff,
                                    0x8000000000000000,
                                    ~std::uint64_t{0},
                                    ~std::uint64_t{0} - 63,
                                    bytes.size()};
  for (std::size_t at = 0; at + 8 <= std::min<std::size_t>(bytes.size(), 4096); at += 8) {
    for (std::uint64_t extreme : extremes) {
      auto damaged = fenced.copy_of(bytes);
      std::memcpy(&damaged[at], &extreme, sizeof extreme);
      look(damaged);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(samples, Damage,
                         testing::Values("plain.so", "sysv_hash.so", "stripped.so", "module_c.so",
                                         "module_cxx.so", "destructor.so", "tls_static.so",
                                         "program_fixed", "module_clang.so", "symbols.so",
                                         "symbols_packed.so"),
                         [](const auto& test) { return test_name(test.param); });

// An early dynamic table leads to all others, so it gets values of its own.
TEST(damage, dynamic_entries) {
  const auto bytes = contents(sample_path("module_cxx.so"));
  auto image = Image::parse(bytes);
  ASSERT_TRUE(image);
  std::uint64_t at = 0;
  std::uint64_t size = 0;
  for (const Elf64_Phdr& segment : image->segments()) {
    if (segment.p_type != PT_DYNAMIC) continue;
    at = segment.p_offset;
    size = segment.p_filesz;
  }
  FencedBytes fenced(bytes.size());
  std::mt19937_64 random(7);
  std::size_t accepted = 0;
  for (int copy = 0; copy < 5000; ++copy) {
    auto damaged = fenced.copy_of(bytes);
    const std::uint64_t entry = at + random() % (size / 16) * 16;
    const std::uint64_t value = random() % 3 == 0 ? random()
                                : random() % 2    ? random() % (2 * bytes.size())
                                                  : 8;
    std::memcpy(&damaged[entry + random() % 2 * 8], &value, sizeof value);
    accepted += look(damaged);
  }
  EXPECT_GT(accepted, 50u);
}

}  // namespace
}  // namespace molt::elf
