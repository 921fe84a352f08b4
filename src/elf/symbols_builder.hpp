// symbols_builder.hpp - makes a Symbols of one or several raw symbol tables. Internal to elf/.
#pragma once

#include "elf/input.hpp"
#include "elf/symbols.hpp"

namespace molt::elf {

// How .gnu.version and .gnu.version_d name the version of a symbol of .dynsym.
struct VersionTable {
  View versym;  // std::uint16_t for each symbol
  View verdef;  // Elf64_Verdef records
};

class SymbolsBuilder {
 public:
  explicit SymbolsBuilder(std::string_view object);

  // What the section numbers in tables added after this mean; null: nothing.
  [[nodiscard]] Status use_sections(const Sections* sections, std::uint64_t shift);
  // Appends the defined symbols of a table (Elf64_Sym) with its strings. `shift` is added to their
  // addresses.
  [[nodiscard]] Status add(View table, View strings, SymbolSource source, std::uint64_t shift,
                           const VersionTable& versions = {});
  // One line that says why no better source was used.
  void note(std::string_view shortcoming);

  // No symbol of the object is missing.
  void set_complete() { symbols_.complete_ = true; }

  std::size_t size() const { return symbols_.count_; }
  // Builds the indexes. Nothing may be added afterwards.
  [[nodiscard]] Result<Symbols> finish(std::uint64_t bias);

 private:
  [[nodiscard]] std::optional<std::uint32_t> keep(View text);
  [[nodiscard]] static Result<Bytes> version_names(View verdef);
  [[nodiscard]] Status index_names();
  [[nodiscard]] Status index_addresses();

  Symbols symbols_;
  // The part of symbols_.sections_ that the tables to come mean.
  std::size_t sections_base_ = 0;
  std::size_t sections_count_ = 0;
};

}  // namespace molt::elf
