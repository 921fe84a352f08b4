// symbols.hpp - names for addresses in loaded objects, from the symbol tables of their files.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/memory.hpp"
#include "elf/image.hpp"

namespace molt::audit {

struct Named {
  std::string name;          // mangled
  std::uint64_t offset = 0;  // from the symbol's first byte
  unsigned char type = 0;    // STT_*
};

// One file's .symtab, or .dynsym where that was stripped.
class Symbols {
 public:
  // Unreadable files, and those over 256 MiB, have no symbols.
  void open(const std::string& file);
  const std::string& file() const { return file_; }
  bool empty() const { return !image_ || table().empty(); }
  // The symbol that covers an address of the file (not of memory); of several the closest.
  std::optional<Named> at(std::uint64_t address) const;
  // Before it there are only _init and the linkage table, which no pointer leads to in a shared
  // object. 0: not known.
  std::uint64_t first_function() const;

 private:
  const elf::SymbolTable& table() const;

  std::string file_;
  Bytes content_;
  std::optional<elf::Image> image_;
};

// The loaded object that an address lies in.
struct ObjectOf {
  std::string file;  // "/proc/self/exe" for the program
  std::string name;  // for people: the last part of its path
  std::uintptr_t bias = 0;
  std::uintptr_t begin = 0;
};
std::optional<ObjectOf> object_of(std::uintptr_t address);

}  // namespace molt::audit
