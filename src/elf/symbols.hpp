// symbols.hpp - functions and data of one object by name and by address, static ones included.
//
// Roles      Whoever must find what a name means asks read_symbols() for a table of the object once,
//            asks the table as often as it likes, and drops it: nothing stays open or mapped.
// State      A copy of the symbols and names, an index by name and one by address: about the size
//            of the file's .symtab and .strtab and 25 bytes a symbol. Never changes once made.
// Invariants S1 A table belongs to the very file that was asked about: whatever is read from
//               elsewhere (a debug file) has the same build-id, or it is not used.
//            S2 A position means something only in a complete table (.symtab, of the file or of its
//               debug file, with static symbols in it: `strip -x` takes them out). Lesser sources
//               leave out symbols, so they answer only for names that the asker says are unique.
//            S3 Files are read, never mapped: one that is truncated meanwhile is an error, not a
//               SIGBUS in the host. Whatever a file says, no byte outside of it is used.
// Refuses    Names that are not there, ambiguous, or at no such position, in the kernel's words.
// Checked by tests/elf/symbols_test.cpp, tests/elf/loaded_symbols_test.cpp, tests/fuzz/elf_symbols.cpp
//
// Reading allocates (ENOMEM where there is nothing left), opens files and may take a tenth of a
// second for a million symbols: not for the control thread's inner loop. Asking allocates only where
// it returns a vector. Any thread; no locks.
#pragma once

#include "base/memory.hpp"
#include "base/result.hpp"

#include <elf.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace molt::elf {

// Best first. What was read says Symbols::source(), and each symbol.
enum class SymbolSource : std::uint8_t {
  none,
  symtab,         // .symtab of the file itself
  debug_file,     // .symtab of its separate debug file
  gnu_debugdata,  // the small table that some distributions leave in: functions only
  dynsym,         // what other objects may bind to
};
[[nodiscard]] const char* source_name(SymbolSource source);  // ".symtab", "debug file", ...

struct FoundSymbol {
  std::string_view name;     // without a version; good as long as the table
  std::string_view version;  // "GLIBC_2.14"; "" for none
  std::string_view section;  // ".text"; "" where the file does not say
  // In memory where the table is of a loaded object, else as in the file. Of an indirect function
  // it is the resolver's, of a thread-local variable the offset in the object's TLS block.
  std::uint64_t address;
  std::uint64_t size;      // 0: not known
  std::uint32_t position;  // 1 for the first of its name; 0 where the table is not complete (S2)
  std::uint8_t bind;       // STB_*
  std::uint8_t type;       // STT_*
  SymbolSource source;

  bool is_function() const { return type == STT_FUNC || type == STT_GNU_IFUNC; }
  bool is_indirect() const { return type == STT_GNU_IFUNC; }  // resolved at load time
  bool is_thread_local() const { return type == STT_TLS; }
};

struct SymbolAt {
  FoundSymbol symbol;
  std::uint64_t offset;  // of the address asked for, from the symbol's
};

class Symbols {
 public:
  Symbols() = default;
  Symbols(Symbols&&) noexcept = default;
  Symbols& operator=(Symbols&&) noexcept = default;

  // The symbol of that name. `position` counts the symbols of this name in the order of the object's
  // table, from 1; 0 says that the name is unique (the same address under one name twice is no
  // ambiguity). A plain name means the default version; "memcpy@GLIBC_2.2.5" another.
  // Fails with EINVAL in the kernel's words, and ENOENT where the position can not be known because
  // there is no complete table (S2): the text says which file is missing.
  [[nodiscard]] Result<FoundSymbol> find(std::string_view name, std::uint32_t position = 0) const;
  // All of that name, in the order of the table.
  [[nodiscard]] std::vector<FoundSymbol> find_all(std::string_view name) const;

  // The function or variable that an address is in. Where symbols have no size (hand-written code),
  // the nearest one before it in the same section counts. Of several at one address: global before
  // static, with a size before without, the first in the table.
  [[nodiscard]] std::optional<SymbolAt> at(std::uint64_t address) const;

  // By its place in the table, below size(); without its position among those of its name.
  [[nodiscard]] FoundSymbol operator[](std::size_t index) const {
    return describe(static_cast<std::uint32_t>(index), 0);
  }
  std::size_t size() const { return count_; }
  bool empty() const { return count_ == 0; }
  // The best source used. gnu_debugdata stands for it together with .dynsym.
  SymbolSource source() const { return source_; }
  // Are all symbols of the object there, as far as a file can tell (S2)?
  bool complete() const { return complete_; }
  // Why no better source was used, one line: "stripped; no debug file /usr/lib/debug/...". "" if
  // the table is complete.
  const std::string& shortcomings() const { return shortcomings_; }
  const std::string& object() const { return object_; }  // the name used in messages

 private:
  friend class SymbolsBuilder;
  struct Entry;    // a symbol
  struct Section;  // where a section is
  struct Place;    // a symbol in the order of addresses

  const Entry* entries() const;
  std::string_view text(std::uint32_t offset) const;
  std::string_view name(const Entry& entry) const;
  [[nodiscard]] FoundSymbol describe(std::uint32_t index, std::uint32_t position) const;
  // Calls f(index, position) for each symbol that a name means, until it returns false.
  template <class F>
  void for_each_of(std::string_view name, F&& f) const;

  Bytes entries_;     // Entry[count_], in the order of the table
  Bytes names_;       // what the entries' names are offsets into
  Bytes heads_;       // by name: the first entry of each bucket; a power of two of them
  Bytes next_;        // the next entry of the same bucket, in the order of the table
  Bytes by_address_;  // Place[addresses_], ascending
  Bytes sections_;    // Section[]
  std::uint64_t bias_ = 0;
  std::size_t count_ = 0;
  std::size_t addresses_ = 0;
  SymbolSource source_ = SymbolSource::none;
  bool complete_ = false;
  std::string shortcomings_;
  std::string object_;
};

// $MOLT_DEBUG_DIRECTORY, unless the program is set-uid; or null.
const char* given_debug_directory();

struct SymbolOptions {
  // Where separate debug files are: <directory>/.build-id/xx/yyyy.debug, and what .gnu_debuglink
  // names in the object's folder, its .debug folder and <directory>/<folder of the object>. The
  // extra one is asked first; "" or null: none.
  const char* debug_directory = "/usr/lib/debug";
  const char* extra_debug_directory = given_debug_directory();
};

// The symbols of an open ELF file (shared object, program or debug file), by its own addresses.
// `path` is where it is, for .gnu_debuglink and messages; it may be "".
[[nodiscard]] Result<Symbols> read_symbols(int fd, std::string_view path,
                                           const SymbolOptions& options = {});
// The same of bytes in memory; nothing else is opened.
[[nodiscard]] Result<Symbols> read_symbols(std::span<const std::byte> file, std::string_view name);

}  // namespace molt::elf
