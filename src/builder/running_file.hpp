// running_file.hpp - what is read from the file that runs. Internal to builder/; placement.hpp has
// the part for everybody.
#pragma once

#include "builder/placement.hpp"
#include "elf/image.hpp"
#include "elf/symbols.hpp"

#include <map>
#include <unordered_map>

namespace molt::builder {

// What the dynamic loader does to a place of the image.
struct LoaderRelocation {
  std::uint64_t address;
  std::int64_t addend;  // of DT_RELR: the word that is there
  std::uint32_t type;
  std::string_view symbol;
};

struct Import {
  std::string_view version;
  std::string_view library;  // a soname; "" without symbol versions
  std::uint8_t type;         // STT_*
  bool is_weak;
};

// A function or variable of a library that the image needs.
struct LibrarySymbol {
  std::string_view library;
  std::string_view version;
  std::uint64_t size;
  std::uint8_t type;
};

struct RunningFile::State {
  std::string path;
  std::vector<std::byte> file;
  std::optional<elf::Image> image;  // of `file`
  elf::Symbols symbols;
  std::string soname;
  std::vector<std::string> source_names;
  std::vector<LoaderRelocation> relocations;  // by address
  std::unordered_map<std::string_view, Import> imports;
  std::uint64_t tls_bytes = 0;  // from the TLS block's first byte to the thread pointer
  bool is_program = true;
  bool is_pie = false;

  // By address, functions and variables; only to name things and to see what shares an address.
  std::multimap<std::uint64_t, std::uint32_t> by_address;

  const LoaderRelocation* relocation_at(std::uint64_t address) const;
  // The symbol whose slot a PLT entry at this address jumps through; "" if there is no PLT entry.
  std::string_view plt_target(std::uint64_t address) const;
  bool is_mapped(std::uint64_t address) const;
  bool is_code(std::uint64_t address) const;
  // Searches the needed libraries, in the loader's order; opened at the first question.
  std::optional<LibrarySymbol> find_in_libraries(std::string_view name) const;

  Status read_dynamic();
  void index_plt();

 private:
  struct Library {
    std::string soname;
    elf::Symbols symbols;
  };
  void open_libraries() const;
  mutable bool libraries_opened_ = false;
  mutable std::vector<Library> libraries_;
  std::unordered_map<std::uint64_t, std::string_view> plt_;
};

}  // namespace molt::builder
