// Symbol tables of any content, packed ones too, must be refused or be safe to ask.

#include "look.hpp"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  auto bytes = std::as_bytes(std::span(data, size));
  auto symbols = molt::elf::read_symbols(bytes, "fuzzed");
  if (!symbols && (symbols.error().code == 0 || symbols.error().detail[0] == '\0')) std::abort();
  if ((molt::elf::look_at_symbols(bytes) != 0) != symbols.has_value()) std::abort();
  return 0;
}
