// symbol_files.hpp - where the symbols of a file that is no longer whole may be. Internal to elf/.
#pragma once

#include "base/fd.hpp"
#include "elf/input.hpp"
#include "elf/symbols.hpp"
#include "elf/symbols_builder.hpp"

#include <string>
#include <string_view>

namespace molt::elf {

// The object whose symbols are wanted.
struct SymbolOwner {
  std::string_view path;              // where .gnu_debuglink starts from; may be ""
  std::string_view build_id;          // a debug file must have the same; "" refuses all
  std::optional<std::uint64_t> base;  // its lowest address, as Sections::base()
};

// Adds the best that there is of .symtab, the separate debug file, and .gnu_debugdata, and notes what
// was missing. True: the table is complete; false: .dynsym should be added. What is damaged counts as
// missing; only having no memory is a failure.
[[nodiscard]] Result<bool> add_static_symbols(SymbolsBuilder& builder, const Input& file,
                                              const Sections& sections, const SymbolOwner& owner,
                                              const SymbolOptions& options);

// The debug file of an object of which no file is left at all.
[[nodiscard]] Result<bool> add_debug_file(SymbolsBuilder& builder, std::string_view link,
                                          const SymbolOwner& owner, const SymbolOptions& options);

// A regular file opened for reading, without waiting for whatever stands there instead.
[[nodiscard]] Fd open_to_read(const char* path);

}  // namespace molt::elf
