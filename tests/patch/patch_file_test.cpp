// What the parser takes, and that it refuses whatever was cut off or changed.

#include "patchfile/patch_file.hpp"

#include <gtest/gtest.h>

#include "sample.hpp"

namespace molt::patch_test {
namespace {

using patchfile::PatchFile;

Sample sample() {
  static const std::vector<std::byte> old = code({0x90, 0xc3, 0x90, 0x90, 0x90});
  Sample s = make_sample("program", "aabb", 0x1000, old, code({0xe8, 0, 0, 0, 0, 0xc3}));
  builder::PatchWriter::Binding binding;
  binding.kind = patch_file::Binding::dynamic;
  binding.version = "GLIBC_2.2.5";
  binding.library = "libc.so.6";
  binding.is_function = true;
  s.writer.relocate(s.text, 1, R_X86_64_PLT32, s.writer.bind("getpid", binding), -4);
  binding = {};
  binding.value = 0x2000;
  s.writer.relocate(s.constants, 8, R_X86_64_64, s.writer.bind("counter", binding), 4);
  return s;
}

TEST(PatchFile, SaysWhatTheWriterWrote) {
  const auto bytes = sample().writer.bytes();
  EXPECT_TRUE(PatchFile::is_one(bytes));
  auto file = PatchFile::parse(bytes);
  ASSERT_TRUE(file) << file.error().detail;
  ASSERT_EQ(1u, file->targets().size());
  EXPECT_EQ("program", file->targets()[0].name);
  EXPECT_EQ("aabb", file->targets()[0].build_id);
  EXPECT_TRUE(file->targets()[0].is_program);
  ASSERT_EQ(1u, file->functions().size());
  EXPECT_EQ("fixed", file->functions()[0].name);
  EXPECT_EQ(0x1000u, file->functions()[0].old_address);
  EXPECT_EQ(5u, file->functions()[0].old_size);
  EXPECT_EQ("sample", file->info("name"));
  EXPECT_EQ("CVE-2026-1", file->info("cve"));
  const auto text = file->section_named(".text.fixed");
  ASSERT_TRUE(text);
  const auto& section = file->sections()[*text];
  EXPECT_TRUE(section.executable);
  ASSERT_EQ(1u, section.relocations.size());
  const auto& symbol = file->symbols()[ELF64_R_SYM(section.relocations[0].r_info)];
  EXPECT_EQ("getpid", symbol.name);
  EXPECT_EQ("GLIBC_2.2.5", symbol.version);
  EXPECT_EQ(patchfile::Meaning::dynamic, symbol.meaning);
}

TEST(PatchFile, OthersAreNone) {
  EXPECT_FALSE(PatchFile::is_one({}));
  const auto text = code({'#', '!', '/', 'b'});
  EXPECT_FALSE(PatchFile::is_one(text));
  EXPECT_FALSE(PatchFile::parse(text));
}

TEST(PatchFile, AnotherVersionIsRefused) {
  auto bytes = sample().writer.bytes();
  const std::string_view all(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const std::size_t header =
      all.find(std::string_view(patch_file::magic, sizeof patch_file::magic));
  ASSERT_NE(std::string_view::npos, header);
  bytes[header + 8] = std::byte{2};
  auto file = PatchFile::parse(bytes);
  ASSERT_FALSE(file);
  EXPECT_NE(std::string::npos, std::string(file.error().detail).find("version 2"));
}

// The section headers come last: whatever is cut off takes a table with it.
TEST(PatchFile, CutOffAnywhereItIsRefused) {
  const auto bytes = sample().writer.bytes();
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    ASSERT_FALSE(PatchFile::parse(std::span(bytes).first(size))) << size;
  }
}

// Every byte changed: refused, or still consistent. The sanitizers see what is read.
TEST(PatchFile, AnyByteMayBeAnother) {
  const auto sound = sample().writer.bytes();
  for (std::size_t i = 0; i < sound.size(); ++i) {
    for (unsigned char flip : {0x01, 0x80, 0xff}) {
      auto bytes = sound;
      bytes[i] ^= std::byte{flip};
      auto file = PatchFile::parse(bytes);
      if (!file) continue;
      for (const auto& section : file->sections()) {
        for (const Elf64_Rela& r : section.relocations) {
          ASSERT_LT(ELF64_R_SYM(r.r_info), file->symbols().size());
          ASSERT_LE(r.r_offset + patchfile::relocated_bytes(
                                     static_cast<std::uint32_t>(ELF64_R_TYPE(r.r_info))),
                    section.content.size());
        }
      }
    }
  }
}

TEST(PatchFile, UnboundSymbolsAreRefused) {
  Sample s = sample();
  builder::PatchWriter::Binding binding;
  binding.target = 3;  // there is one
  s.writer.relocate(s.text, 1, R_X86_64_PLT32, s.writer.bind("elsewhere", binding), -4);
  EXPECT_FALSE(PatchFile::parse(s.writer.bytes()));
}

TEST(PatchFile, RelocationsOutsideOfTheirSectionAreRefused) {
  Sample s = sample();
  s.writer.relocate(s.constants, 9, R_X86_64_64, s.entry, 0);
  EXPECT_FALSE(PatchFile::parse(s.writer.bytes()));
}

TEST(PatchFile, WritableCodeIsRefused) {
  Sample s = sample();
  builder::PatchWriter::Section section;
  section.name = ".text.both";
  section.content = code({0xc3});
  section.executable = section.writable = true;
  s.writer.add_section(section);
  EXPECT_FALSE(PatchFile::parse(s.writer.bytes()));
}

}  // namespace
}  // namespace molt::patch_test
