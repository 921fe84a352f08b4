// look.hpp - uses all that an image offers: for tests of damaged files.
#pragma once

#include "elf/hazards.hpp"
#include "elf/image.hpp"
#include "elf/symbols.hpp"

namespace molt::elf {

// Asks for every symbol in all ways. Never 0 where there is a table.
inline std::size_t look_at_symbols(std::span<const std::byte> bytes) {
  auto symbols = read_symbols(bytes, "damaged");
  if (!symbols) return 0;
  std::size_t sum = symbols->shortcomings().size();
  for (std::uint64_t address = 0; address < 0x8000; address += 148) {
    auto at = symbols->at(address);
    if (!at) continue;
    const std::string name(at->symbol.name);
    sum += at->symbol.section.size() + at->symbol.version.size() + at->offset;
    sum += symbols->find_all(name).size();
    auto found = symbols->find(name, static_cast<std::uint32_t>(address & 3));
    sum += found ? found->size : std::strlen(found.error().detail);
  }
  return sum | 1;
}

// The sum keeps the reads from being left out. Never 0.
inline std::size_t look_at_everything(const Image& image) {
  std::size_t sum = image.loaded_bytes() + image.soname().size() + image.build_id().size();
  auto read_ends = [&sum](std::span<const std::byte> bytes) {
    if (bytes.empty()) return;
    sum += std::to_integer<std::size_t>(bytes.front()) + std::to_integer<std::size_t>(bytes.back());
  };
  auto read_text = [&](std::string_view text) { read_ends(std::as_bytes(std::span(text))); };

  for (std::string_view name : image.needed()) read_text(name);
  for (const SymbolTable* table : {&image.dynamic_symbols(), &image.static_symbols()}) {
    for (Symbol symbol : *table) {
      read_text(symbol.name);
      if (auto bytes = image.at_address(symbol.value, symbol.size)) read_ends(*bytes);
    }
  }
  for (const Note& note : image.module_notes()) {
    read_text(note.key);
    read_text(note.value);
  }
  image.for_each_relocation([&](const Elf64_Rela& relocation) { sum += relocation.r_offset; });
  sum += image.undefined_symbols().size() + image.has_export("touch");
  for (const Hazard& hazard : unload_hazards(image)) read_text(hazard.text);
  for (const Hazard& hazard : lasting_effects(image)) read_text(hazard.text);
  return sum | 1;
}

}  // namespace molt::elf
