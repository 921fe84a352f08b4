// image.hpp - what a shared object says about itself, read from the bytes of its file.
//
// Roles      Whoever loads or checks a module maps or reads its file and looks at it through an Image
//            before the dynamic loader sees it.
// State      Offsets into the caller's bytes, and small copies of the headers. The bytes must
//            outlive the Image and every name, note and table taken from it.
// Invariants I1 No byte outside the span is read, whatever the file says: every offset, size and
//               count from the file passes one of the checked readers of image.cpp.
//            I2 What the dynamic loader finds by address is looked up by address (PT_LOAD), not by
//               section header: sections may be missing or tell another story.
// Refuses    Files that are not ELF, truncated, of another machine, or that contradict themselves;
//            with ENOEXEC and, where it has words for that, in the kernel's words.
// Checked by tests/elf, tests/fuzz/elf_image.cpp
//
// Every function may be called from any thread, takes no locks and does not block. Only parse() and
// the functions that return a vector or string allocate.
#pragma once

#include "base/result.hpp"

#include <elf.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace molt::elf {

struct Symbol {
  std::string_view name;  // mangled; without a version
  std::uint64_t value;    // an image address; for STT_TLS an offset in the TLS block
  std::uint64_t size;
  std::uint8_t bind;        // STB_*
  std::uint8_t type;        // STT_*
  std::uint8_t visibility;  // STV_*
  bool defined;

  // Can another object bind to it?
  bool exported() const {
    return defined && (bind == STB_GLOBAL || bind == STB_WEAK || bind == STB_GNU_UNIQUE) &&
           (visibility == STV_DEFAULT || visibility == STV_PROTECTED);
  }
  bool undefined() const { return !defined && !name.empty(); }
  bool weak() const { return bind == STB_WEAK; }
};

// A symbol table with its strings. Entry 0, which ELF reserves, is there too: nameless, undefined.
class SymbolTable {
 public:
  class Iterator {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = Symbol;
    using difference_type = std::ptrdiff_t;
    using pointer = const Symbol*;
    using reference = Symbol;

    Iterator() = default;
    Iterator(const SymbolTable* table, std::size_t index) : table_(table), index_(index) {}
    Symbol operator*() const { return (*table_)[index_]; }
    Iterator& operator++() {
      ++index_;
      return *this;
    }
    Iterator operator++(int) {
      Iterator before = *this;
      ++index_;
      return before;
    }
    friend bool operator==(const Iterator& a, const Iterator& b) { return a.index_ == b.index_; }

   private:
    const SymbolTable* table_ = nullptr;
    std::size_t index_ = 0;
  };

  SymbolTable() = default;
  SymbolTable(std::span<const std::byte> entries, std::span<const std::byte> strings)
      : entries_(entries), strings_(strings) {}

  std::size_t size() const { return entries_.size() / sizeof(Elf64_Sym); }
  bool empty() const { return size() == 0; }
  // `index` must be below size(). A name that leaves the strings reads as empty.
  Symbol operator[](std::size_t index) const;
  Iterator begin() const { return {this, 0}; }
  Iterator end() const { return {this, size()}; }
  std::span<const std::byte> entries() const { return entries_; }  // Elf64_Sym
  std::span<const std::byte> strings() const { return strings_; }

 private:
  std::span<const std::byte> entries_;
  std::span<const std::byte> strings_;
};

// One MOLT_NOTE_INFO record: what module.h and module.hpp write. The same key may come many times.
struct Note {
  std::string_view key;
  std::string_view value;
};

// What the caller is going to do with the file.
enum class Purpose {
  load,     // a shared object for dlopen: programs are refused
  examine,  // programs as well
};

class Image {
 public:
  // Fails with EINVAL for an empty file, else with ENOEXEC. Time and memory are linear in the size
  // of the file at worst, whatever it contains.
  [[nodiscard]] static Result<Image> parse(std::span<const std::byte> file,
                                           Purpose purpose = Purpose::load);

  std::uint16_t type() const { return header_.e_type; }        // ET_DYN or ET_EXEC
  std::uint16_t machine() const { return header_.e_machine; }  // EM_X86_64
  std::span<const std::byte> file() const { return file_; }
  const Elf64_Ehdr& header() const { return header_; }
  const std::vector<Elf64_Phdr>& segments() const { return segments_; }
  const std::vector<Elf64_Shdr>& sections() const { return sections_; }

  // The dynamic table. Without one (a static program) all of it is empty or 0.
  std::string_view soname() const { return soname_; }
  const std::vector<std::string_view>& needed() const { return needed_; }  // sonames
  std::uint64_t flags() const { return flags_; }                           // DF_*
  std::uint64_t flags_1() const { return flags_1_; }                       // DF_1_*

  const SymbolTable& dynamic_symbols() const { return dynamic_symbols_; }
  // .symtab; empty when the file is stripped.
  const SymbolTable& static_symbols() const { return static_symbols_; }
  [[nodiscard]] bool has_export(std::string_view name) const;
  [[nodiscard]] std::vector<Symbol> undefined_symbols() const;

  // Calls f(const Elf64_Rela&) for each relocation of DT_RELA and DT_JMPREL. DT_RELR's, which name
  // no symbol, are left out.
  template <class F>
  void for_each_relocation(F&& f) const {
    for (std::span<const std::byte> table : relocations_) {
      for (; table.size() >= sizeof(Elf64_Rela); table = table.subspan(sizeof(Elf64_Rela))) {
        Elf64_Rela relocation;
        std::memcpy(&relocation, table.data(), sizeof relocation);
        f(relocation);
      }
    }
  }

  // Lower-case hexadecimal; empty when there is none.
  const std::string& build_id() const { return build_id_; }

  // Records of the PT_NOTE segments with owner "Molt" and type MOLT_NOTE_INFO, in file order.
  const std::vector<Note>& module_notes() const { return module_notes_; }
  // The value of the first note with that key.
  [[nodiscard]] std::optional<std::string_view> note(std::string_view key) const;

  // Bytes of address space that the object takes once loaded: from the first to the last page of
  // its PT_LOAD segments, holes included. At most 2^47.
  std::uint64_t loaded_bytes() const { return loaded_bytes_; }

  // File bytes behind an image address range, as the loader would map them; nothing unless the
  // whole range lies in the file part of one PT_LOAD segment.
  [[nodiscard]] std::optional<std::span<const std::byte>> at_address(std::uint64_t address,
                                                                     std::uint64_t bytes) const;

 private:
  struct DynamicTable;

  Image() = default;
  [[nodiscard]] Status check_header(Purpose purpose);
  [[nodiscard]] Status read_sections();
  [[nodiscard]] Status read_segments();
  [[nodiscard]] Status read_dynamic(Purpose purpose);
  [[nodiscard]] Status find_dynamic_symbols(const DynamicTable& table);
  void find_static_symbols();
  void read_notes();
  void read_note_segment(std::span<const std::byte> bytes, std::size_t alignment);

  std::span<const std::byte> file_;
  Elf64_Ehdr header_{};
  std::vector<Elf64_Shdr> sections_;
  std::vector<Elf64_Phdr> segments_;
  std::uint64_t loaded_bytes_ = 0;

  std::string_view soname_;
  std::vector<std::string_view> needed_;
  std::uint64_t flags_ = 0;
  std::uint64_t flags_1_ = 0;
  std::span<const std::byte> relocations_[2];  // Elf64_Rela arrays: DT_RELA and DT_JMPREL

  SymbolTable dynamic_symbols_;
  SymbolTable static_symbols_;
  std::string build_id_;
  std::vector<Note> module_notes_;
};

}  // namespace molt::elf
