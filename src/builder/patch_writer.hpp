// patch_writer.hpp - the bytes of a patch file (abi/patch_file.hpp) from its parts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "abi/patch_file.hpp"

namespace molt::builder {

// Indexes are given in the order of adding; those of symbols survive until bytes(), which sorts them
// as ELF wants them.
class PatchWriter {
 public:
  struct Section {
    std::string name;
    std::vector<std::byte> content;  // empty: `size` zeros
    std::uint64_t size = 0, alignment = 1;
    bool executable = false, writable = false;
    std::uint32_t target = 0;
  };
  struct Binding {
    patch_file::Binding kind = patch_file::Binding::image;
    std::uint32_t target = 0;
    std::uint64_t value = 0;
    std::string version, library;
    bool is_function = false;
  };
  struct Function {
    std::uint32_t target = 0;
    std::string name;
    std::uint32_t symbol = 0;
    bool is_part = false;
    std::uint64_t old_address = 0, old_size = 0;
    std::span<const std::byte> old_bytes, new_bytes;
  };

  std::uint32_t add_target(const std::string& name, const std::string& build_id,
                           std::uint32_t flags);
  std::uint32_t add_section(Section section);
  // Bytes behind what the section has; their offset.
  std::uint64_t append(std::uint32_t section, std::span<const std::byte> bytes,
                       std::uint64_t alignment);
  std::uint32_t define(const std::string& name, std::uint32_t section, std::uint64_t value,
                       std::uint64_t size, std::uint8_t type);
  std::uint32_t absolute(const std::string& name, std::uint64_t value);
  std::uint32_t bind(const std::string& name, const Binding& binding);
  void relocate(std::uint32_t section, std::uint64_t offset, std::uint32_t type,
                std::uint32_t symbol, std::int64_t addend);
  void add_function(const Function& function);
  void add_info(std::string_view key, std::string_view value);

  const std::vector<Section>& sections() const { return sections_; }
  std::size_t function_count() const { return functions_.size(); }
  std::vector<std::byte> bytes() const;

 private:
  struct Symbol {
    std::string name;
    std::uint32_t section = 0;  // 1-based; 0: undefined
    bool is_absolute = false;
    std::uint64_t value = 0, size = 0;
    std::uint8_t type = 0;
    bool is_bound = false;
    Binding binding;
  };
  struct Relocation {
    std::uint64_t offset;
    std::uint32_t type, symbol;
    std::int64_t addend;
  };
  struct Target {
    std::string name, build_id;
    std::uint32_t flags;
  };
  struct FunctionRecord {
    std::string name;
    patch_file::Function record;
  };
  std::vector<Target> targets_;
  std::vector<Section> sections_;
  std::vector<std::vector<Relocation>> relocations_;
  std::vector<Symbol> symbols_;
  std::vector<FunctionRecord> functions_;
  std::string info_;
};

}  // namespace molt::builder
