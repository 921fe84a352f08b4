// object.hpp - a compiler's relocatable object (ET_REL) in memory: sections, symbols, relocations.
//
// Read once through libelf, checked, then only looked at: every section and symbol index in an Object
// is in range, every relocation lies inside its section, and relocations are in ascending order.
#pragma once

#include "base/result.hpp"

#include <elf.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace molt::builder {

struct Relocation {
  std::uint64_t offset;
  std::int64_t addend;
  std::uint32_t type;    // R_X86_64_*
  std::uint32_t symbol;  // index in the symbol table
};

struct ObjectSymbol {
  std::string_view name;  // "" for section symbols
  std::uint64_t value = 0;
  std::uint64_t size = 0;
  std::uint32_t section = 0;    // 0: undefined, absolute or common
  std::uint8_t bind = 0;        // STB_*
  std::uint8_t type = 0;        // STT_*
  std::uint8_t visibility = 0;  // STV_*
  bool is_absolute = false;
  bool is_common = false;

  bool is_defined() const { return section != 0; }
  bool is_undefined() const { return section == 0 && !is_absolute && !is_common; }
  bool is_local() const { return bind == STB_LOCAL; }
  bool is_section() const { return type == STT_SECTION; }
  bool is_function() const { return type == STT_FUNC || type == STT_GNU_IFUNC; }
};

struct ObjectSection {
  std::string_view name;
  std::uint32_t type = 0;   // SHT_*
  std::uint64_t flags = 0;  // SHF_*
  std::uint64_t size = 0;
  std::uint64_t alignment = 1;
  std::uint64_t entry_size = 0;
  std::uint32_t link = 0;
  std::uint32_t info = 0;
  std::span<const std::byte> bytes;  // empty for SHT_NOBITS
  std::vector<Relocation> relocations;
  std::vector<std::uint32_t> symbols;  // defined in it, section symbols left out, by value
  std::string_view group;              // the signature of its COMDAT group, or ""

  bool is_allocated() const { return (flags & SHF_ALLOC) != 0; }
  bool is_code() const { return (flags & SHF_EXECINSTR) != 0; }
  bool is_writable() const { return (flags & SHF_WRITE) != 0; }
  bool is_thread_local() const { return (flags & SHF_TLS) != 0; }
  // Linkers merge nothing that has relocations: without position independence gcc has pairs of addresses
  // among its constants.
  bool is_mergeable() const { return (flags & SHF_MERGE) != 0 && relocations.empty(); }
  bool has_strings() const { return (flags & SHF_STRINGS) != 0; }
};

class Object {
 public:
  // Fails with ENOEXEC for what is no relocatable object of this machine; with EILSEQ for an object
  // of link-time optimisation, which has no machine code yet.
  [[nodiscard]] static Result<Object> read(const std::string& path);
  Object(Object&&) noexcept;
  Object& operator=(Object&&) noexcept;
  ~Object();

  const std::string& path() const;
  // By index; entry 0 is the reserved one.
  std::span<const ObjectSection> sections() const;
  std::span<const ObjectSymbol> symbols() const;
  const ObjectSection& section_of(const ObjectSymbol& symbol) const;
  // 0: none of that name. Of several the first.
  std::uint32_t find_section(std::string_view name) const;
  std::uint32_t find_symbol(std::string_view name) const;
  // What the compiler calls itself (.comment): "GCC: (Debian 12.2.0-14) 12.2.0", or "".
  std::string_view compiler() const;
  // Carries the compiler's intermediate code beside the machine code (-ffat-lto-objects).
  bool has_lto_code() const;

 private:
  struct State;
  explicit Object(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace molt::builder
