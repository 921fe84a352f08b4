// patch_file.hpp - what a patch file says, checked as far as its bytes alone can tell.
//
//     auto file = PatchFile::parse(bytes);
//     for (const Function& f : file->functions()) ... f.name, f.old_address
//
// Roles      The process that a patch is put into, `molt info` and `molt check` read through this.
// State      Views into the caller's bytes, which must outlive it, and copies of the tables.
// Invariants F1 No byte outside of the span is read, whatever the file says (elf/read.hpp).
//            F2 What was parsed is consistent: every index, offset and size in it can be used as it
//               is. Sections to be mapped are 64 MiB at most together.
// Refuses    ENOEXEC: not a patch file, of another version, or one that contradicts itself.
// Checked by tests/patchfile, tests/fuzz/patch_file.cpp
//
// Any thread; no locks.
#pragma once

#include <elf.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "abi/patch_file.hpp"
#include "base/result.hpp"

namespace molt::patchfile {

namespace abi = molt::patch_file;

struct Target {
  std::string_view name, build_id;
  bool is_program = false, is_low = false;
};

// A section that goes into the process.
struct Section {
  std::string_view name;
  std::span<const std::byte> content;  // empty if it is all zeros
  std::uint64_t size = 0, alignment = 1;
  std::uint32_t index = 0;  // in the file
  std::uint32_t target = 0;
  bool executable = false, writable = false;
  std::vector<Elf64_Rela> relocations;
};

enum class Meaning : std::uint8_t {
  section,   // `section` + `value`
  absolute,  // `value`
  image,
  dynamic,
  tls,
};
struct Symbol {
  std::string_view name;
  Meaning meaning = Meaning::absolute;
  std::uint8_t type = 0;      // STT_*
  std::uint32_t section = 0;  // in sections()
  std::uint32_t target = 0;
  std::uint64_t value = 0, size = 0;
  std::string_view version, library;
  bool is_function = false;
};

struct Function {
  std::string_view name;
  std::uint32_t target = 0;
  std::uint32_t symbol = 0;  // in symbols()
  bool is_part = false;
  std::uint64_t old_address = 0, old_size = 0;
  std::span<const unsigned char, 16> old_hash, new_hash;
};

struct Info {
  std::string_view key, value;
};

class PatchFile {
 public:
  // Whether the bytes are meant to be a patch file: the word of an error may then say so.
  [[nodiscard]] static bool is_one(std::span<const std::byte> file);
  [[nodiscard]] static Result<PatchFile> parse(std::span<const std::byte> file);

  const std::vector<Target>& targets() const { return targets_; }
  const std::vector<Section>& sections() const { return sections_; }
  const std::vector<Symbol>& symbols() const { return symbols_; }  // index 0 is nobody's
  const std::vector<Function>& functions() const { return functions_; }
  const std::vector<Info>& info() const { return info_; }
  // The first of that key; "" for none.
  [[nodiscard]] std::string_view info(std::string_view key) const;
  [[nodiscard]] bool has_flag(std::string_view flag) const;
  // In sections().
  [[nodiscard]] std::optional<std::size_t> section_named(std::string_view name) const;

 private:
  struct Parser;
  std::vector<Target> targets_;
  std::vector<Section> sections_;
  std::vector<Symbol> symbols_;
  std::vector<Function> functions_;
  std::vector<Info> info_;
};

// Bytes that a relocation of that type changes; 0: no patch may have it.
[[nodiscard]] unsigned relocated_bytes(std::uint32_t type);

}  // namespace molt::patchfile
