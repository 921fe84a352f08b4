// symbols.hpp - what a patch's symbols mean in this process.
#pragma once

#include <cstdint>
#include <optional>

#include "base/result.hpp"
#include "elf/loaded_symbols.hpp"
#include "patchfile/patch_file.hpp"

namespace molt::linker {

// Where a thread-local variable is.
struct TlsPlace {
  std::uint64_t module = 0;
  std::uint64_t offset = 0;                 // in the module's block
  std::optional<std::int64_t> from_thread;  // from the thread pointer: the same for all threads
};

// Looked up for the target's own code: in its scope.
[[nodiscard]] Result<std::uintptr_t> find_dynamic(const elf::NamedObject& target,
                                                  const patchfile::Symbol& symbol);
[[nodiscard]] Result<TlsPlace> find_tls(const elf::NamedObject& target, std::uint64_t offset);
// The variable whose instance in this thread is at that address.
[[nodiscard]] Result<TlsPlace> find_tls_at(std::uintptr_t address);

}  // namespace molt::linker
