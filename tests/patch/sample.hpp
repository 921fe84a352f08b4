// sample.hpp - small patch files without a compiler, for the parser, the linker and the fuzzer.
#pragma once

#include <elf.h>

#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "builder/patch_writer.hpp"

namespace molt::patch_test {

struct Sample {
  builder::PatchWriter writer;
  std::uint32_t text = 0, constants = 0, variables = 0, entry = 0;
};

inline std::vector<std::byte> code(std::initializer_list<int> bytes) {
  std::vector<std::byte> made;
  for (int b : bytes) made.push_back(static_cast<std::byte>(b));
  return made;
}

// One function with that code, which replaces what is at [address, +bytes).
inline Sample make_sample(const std::string& name, const std::string& build_id,
                          std::uint64_t old_address, std::span<const std::byte> old_bytes,
                          std::vector<std::byte> text) {
  Sample s;
  s.writer.add_target(name, build_id, patch_file::target_is_program);
  const std::uint64_t size = text.size();
  builder::PatchWriter::Section section;
  section.name = ".text.fixed";
  section.content = std::move(text);
  section.alignment = 16;
  section.executable = true;
  s.text = s.writer.add_section(section);
  section = {};
  section.name = ".rodata.fixed";
  section.content.resize(16);
  section.alignment = 8;
  s.constants = s.writer.add_section(section);
  section = {};
  section.name = ".data.fixed";
  section.content.resize(16);
  section.alignment = 8;
  section.writable = true;
  s.variables = s.writer.add_section(section);
  s.entry = s.writer.define("fixed", s.text, 0, size, STT_FUNC);
  builder::PatchWriter::Function function;
  function.name = "fixed";
  function.symbol = s.entry;
  function.old_address = old_address;
  function.old_size = old_bytes.size();
  function.old_bytes = old_bytes;
  function.new_bytes = s.writer.sections()[s.text].content;
  s.writer.add_function(function);
  s.writer.add_info(patch_file::info::name, "sample");
  s.writer.add_info(patch_file::info::cve, "CVE-2026-1");
  return s;
}

}  // namespace molt::patch_test
