// entries.hpp - from a function's name to an entry that can be redirected, and what only the census of
// threads can say about it.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "arch/x86_64/entry.hpp"
#include "arch/x86_64/redirect.hpp"
#include "base/result.hpp"
#include "elf/loaded_symbols.hpp"

namespace molt::interpose {

struct Located {
  elf::NamedObject object;
  std::uintptr_t address = 0;
  arch::Entry entry;
};

// `library`: "" for the program, else a path, soname or file name. Reads symbol tables: milliseconds.
// `may_be` is asked about the address before anything else is looked at there.
// ENOENT: no such library or function, with the file that is missing where symbols were stripped;
// ENOTSUP, EBUSY: what stands in the way, in the words of arch/x86_64/entry.hpp.
[[nodiscard]] Result<Located> locate(std::string_view library, std::string_view function,
                                     const std::function<Status(std::uintptr_t)>& may_be = {});

// Looks at every thread of the process.
class ThreadWitness final : public arch::Witness {
 public:
  explicit ThreadWitness(int patience_ms) : patience_ms_(patience_ms) {}
  Status no_thread_blocks_sigtrap() override;
  Status no_thread_within(std::span<const arch::CodeRange> ranges) override;

 private:
  int patience_ms_;
};

}  // namespace molt::interpose
