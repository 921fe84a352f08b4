// Any bytes as a patch file: refused, or consistent.
#include <cstdint>
#include <cstdlib>
#include <span>

#include "patchfile/patch_file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace molt::patchfile;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  auto file = PatchFile::parse(bytes);
  if (!file) return 0;
  if (!PatchFile::is_one(bytes)) abort();
  std::uint64_t total = 0;
  for (const Section& section : file->sections()) {
    if (section.target >= file->targets().size()) abort();
    if (section.executable && section.writable) abort();
    if (!section.content.empty() && section.content.size() != section.size) abort();
    total += section.size;
    for (std::byte b : section.content) total += b == std::byte{0} ? 0u : 1u;
    for (const Elf64_Rela& r : section.relocations) {
      if (ELF64_R_SYM(r.r_info) >= file->symbols().size()) abort();
      const unsigned bytes_changed =
          relocated_bytes(static_cast<std::uint32_t>(ELF64_R_TYPE(r.r_info)));
      if (bytes_changed == 0 || r.r_offset > section.content.size() ||
          section.content.size() - r.r_offset < bytes_changed) {
        abort();
      }
    }
  }
  for (const Function& function : file->functions()) {
    if (function.target >= file->targets().size() || function.name.empty()) abort();
    if (!function.is_part && file->symbols()[function.symbol].meaning != Meaning::section) abort();
    for (unsigned char b : function.old_hash) total += b;
  }
  for (const Info& one : file->info()) total += one.key.size() + one.value.size();
  asm volatile("" : : "r"(total));
  return 0;
}
