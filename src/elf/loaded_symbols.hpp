// loaded_symbols.hpp - what the names of a loaded object's functions and data mean in this process.
//
//     auto object = elf::find_loaded("libz.so.1");
//     auto symbols = elf::read_symbols(*object);
//     auto inflate = symbols->find("inflate_table");   // a static function
//     inflate->address                                  // where it is now
//
// The file on disk may have been replaced or deleted since it was mapped (package upgrades do that).
// Therefore the running object's own build-id, read from its memory, decides what is believed, and
// the file is opened through what the kernel still holds where the path leads elsewhere:
// /proc/self/exe for the program, /proc/self/map_files for others where that is permitted. An object
// without a build-id is believed only through the very inode that is mapped, and has no debug file.
// What can be found without any file (.dynsym) is read from the memory itself.
//
// Any thread, but not from a signal handler. The loader's lock is held while the object's dynamic
// symbols are copied, so the object cannot go meanwhile. Afterwards it can: addresses are good as long
// as the caller knows that the object is there. Objects of the caller's link-map namespace only.
#pragma once

#include "elf/loaded.hpp"
#include "elf/symbols.hpp"

#include <link.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace molt::elf {

// An object as it was when it was looked for: a copy.
struct NamedObject {
  std::string path;      // of the program too; as loaded: the file may be gone, or another
  std::string soname;    // "" if it has none
  std::string build_id;  // lower-case hexadecimal, from its memory; "" if it has none
  std::uintptr_t bias = 0;
  Range extent;
  bool is_program = false;
  std::vector<Elf64_Phdr> segments;

  std::string_view name() const;  // the path's last part
};

// The object of that name: "" for the program itself, else its full path, soname or file name; a name
// matched by path comes before one matched by soname, and that before a file name. Fails with ENOENT,
// and with ENOTUNIQ where two objects have the name; their paths are in the text.
[[nodiscard]] Result<NamedObject> find_loaded(std::string_view name);
[[nodiscard]] Result<NamedObject> find_loaded_at(std::uintptr_t address);
[[nodiscard]] std::vector<NamedObject> loaded_objects();

// Moves whenever an object is loaded or unloaded: patches that wait for a library compare it.
struct LoadCount {
  unsigned long long loads = 0;
  unsigned long long unloads = 0;
  friend bool operator==(const LoadCount&, const LoadCount&) = default;
};
[[nodiscard]] LoadCount load_count();

// The symbols of a loaded object, by addresses in this process. Succeeds with .dynsym alone where
// nothing more can be had: see Symbols::complete() and shortcomings(). ESTALE if the object has gone.
[[nodiscard]] Result<Symbols> read_symbols(const NamedObject& object,
                                           const SymbolOptions& options = {});

// What the object's file has for [begin, begin + bytes) of its code in memory. Nothing where the file
// cannot be read or is another since, the bytes are not all in one segment of the file, or the loader
// relocates code (DT_TEXTREL).
[[nodiscard]] std::optional<Bytes> bytes_in_file(const NamedObject& object, std::uintptr_t begin,
                                                 std::size_t bytes);

}  // namespace molt::elf
