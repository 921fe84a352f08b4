#include "builder/patch_writer.hpp"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/hash.hpp"

namespace molt::builder {
namespace {

class Strings {
 public:
  std::uint32_t add(const std::string& text) {
    if (text.empty()) return 0;
    const auto [at, is_new] = known_.try_emplace(text, static_cast<std::uint32_t>(all_.size()));
    if (is_new) all_ += text + '\0';
    return at->second;
  }
  const std::string& all() const { return all_; }

 private:
  std::string all_ = std::string(1, '\0');
  std::map<std::string, std::uint32_t> known_;
};

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

class File {
 public:
  std::uint64_t append(std::span<const std::byte> bytes, std::uint64_t alignment) {
    content_.resize((content_.size() + alignment - 1) & ~(alignment - 1));
    const std::uint64_t at = content_.size();
    content_.insert(content_.end(), bytes.begin(), bytes.end());
    return at;
  }
  template <class T>
  static std::span<const std::byte> bytes_of_all(const std::vector<T>& all) {
    return std::as_bytes(std::span(all.data(), all.size()));
  }
  std::vector<std::byte> content_;
};

Elf64_Shdr header(Strings& names, const std::string& name, std::uint32_t type, std::uint64_t flags,
                  std::uint64_t offset, std::uint64_t size, std::uint64_t alignment) {
  Elf64_Shdr h{};
  h.sh_name = names.add(name);
  h.sh_type = type;
  h.sh_flags = flags;
  h.sh_offset = offset;
  h.sh_size = size;
  h.sh_addralign = alignment;
  return h;
}

}  // namespace

std::uint32_t PatchWriter::add_target(const std::string& name, const std::string& build_id,
                                      std::uint32_t flags) {
  targets_.push_back({name, build_id, flags});
  return static_cast<std::uint32_t>(targets_.size() - 1);
}

std::uint32_t PatchWriter::add_section(Section section) {
  section.size = std::max<std::uint64_t>(section.size, section.content.size());
  sections_.push_back(std::move(section));
  relocations_.emplace_back();
  return static_cast<std::uint32_t>(sections_.size() - 1);
}

std::uint64_t PatchWriter::append(std::uint32_t section, std::span<const std::byte> bytes,
                                  std::uint64_t alignment) {
  Section& s = sections_[section];
  s.alignment = std::max(s.alignment, alignment);
  s.content.resize((s.content.size() + alignment - 1) & ~(alignment - 1));
  const std::uint64_t at = s.content.size();
  s.content.insert(s.content.end(), bytes.begin(), bytes.end());
  s.size = s.content.size();
  return at;
}

std::uint32_t PatchWriter::define(const std::string& name, std::uint32_t section,
                                  std::uint64_t value, std::uint64_t size, std::uint8_t type) {
  symbols_.push_back({name, section + 1, false, value, size, type, false, {}});
  return static_cast<std::uint32_t>(symbols_.size() - 1);
}

std::uint32_t PatchWriter::absolute(const std::string& name, std::uint64_t value) {
  symbols_.push_back({name, 0, true, value, 0, STT_NOTYPE, false, {}});
  return static_cast<std::uint32_t>(symbols_.size() - 1);
}

std::uint32_t PatchWriter::bind(const std::string& name, const Binding& binding) {
  for (std::size_t i = 0; i < symbols_.size(); ++i) {
    const Symbol& s = symbols_[i];
    if (s.is_bound && s.name == name && s.binding.kind == binding.kind &&
        s.binding.target == binding.target && s.binding.value == binding.value &&
        s.binding.version == binding.version) {
      return static_cast<std::uint32_t>(i);
    }
  }
  const std::uint8_t type = binding.kind == patch_file::Binding::tls ? STT_TLS : STT_NOTYPE;
  symbols_.push_back({name, 0, false, 0, 0, type, true, binding});
  return static_cast<std::uint32_t>(symbols_.size() - 1);
}

void PatchWriter::relocate(std::uint32_t section, std::uint64_t offset, std::uint32_t type,
                           std::uint32_t symbol, std::int64_t addend) {
  relocations_[section].push_back({offset, type, symbol, addend});
}

void PatchWriter::add_function(const Function& function) {
  patch_file::Function r{};
  r.target = function.target;
  r.symbol = function.symbol;  // bytes() gives it its place
  r.flags = function.is_part ? std::uint32_t{patch_file::function_is_part} : 0u;
  r.old_address = function.old_address;
  r.old_size = function.old_size;
  std::ranges::copy(content_digest(function.old_bytes), r.old_hash);
  if (!function.is_part) std::ranges::copy(content_digest(function.new_bytes), r.new_hash);
  functions_.push_back({function.name, r});
}

void PatchWriter::add_info(std::string_view key, std::string_view value) {
  info_ += std::string(key) + "=" + std::string(value) + '\0';
}

std::vector<std::byte> PatchWriter::bytes() const {
  Strings section_names, symbol_names, texts;
  std::vector<Elf64_Shdr> headers(1);
  File file;
  file.content_.resize(sizeof(Elf64_Ehdr));

  // Local symbols first: the defined ones. Where each got to.
  std::vector<std::uint32_t> order(symbols_.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_partition(order.begin(), order.end(),
                        [&](std::uint32_t i) { return !symbols_[i].is_bound; });
  std::vector<std::uint32_t> place(symbols_.size());
  std::vector<Elf64_Sym> table(1);
  std::uint32_t first_global = 1;
  for (std::uint32_t i : order) {
    const Symbol& s = symbols_[i];
    place[i] = static_cast<std::uint32_t>(table.size());
    Elf64_Sym sym{};
    sym.st_name = symbol_names.add(s.name);
    sym.st_info = ELF64_ST_INFO(s.is_bound ? STB_GLOBAL : STB_LOCAL, s.type);
    sym.st_shndx = s.is_absolute ? SHN_ABS : static_cast<std::uint16_t>(s.section);
    sym.st_value = s.value;
    sym.st_size = s.size;
    table.push_back(sym);
    if (!s.is_bound) first_global = static_cast<std::uint32_t>(table.size());
  }

  for (const Section& s : sections_) {
    const std::uint64_t flags =
        SHF_ALLOC | (s.executable ? SHF_EXECINSTR : 0u) | (s.writable ? SHF_WRITE : 0u);
    const bool is_zeros = s.content.empty() && !s.executable;
    const std::uint64_t at = is_zeros ? file.content_.size() : file.append(s.content, s.alignment);
    headers.push_back(header(section_names, s.name, is_zeros ? SHT_NOBITS : SHT_PROGBITS, flags, at,
                             s.size, s.alignment));
    headers.back().sh_info = s.target;
  }
  const auto symtab =
      static_cast<std::uint32_t>(1 + sections_.size() +
                                 static_cast<std::size_t>(std::ranges::count_if(
                                     relocations_, [](const auto& r) { return !r.empty(); })));
  for (std::size_t i = 0; i < sections_.size(); ++i) {
    if (relocations_[i].empty()) continue;
    std::vector<Elf64_Rela> all;
    for (const Relocation& r : relocations_[i]) {
      all.push_back({r.offset, ELF64_R_INFO(std::uint64_t{place[r.symbol]}, r.type), r.addend});
    }
    headers.push_back(header(section_names, ".rela" + sections_[i].name, SHT_RELA, SHF_INFO_LINK,
                             file.append(File::bytes_of_all(all), 8),
                             all.size() * sizeof(Elf64_Rela), 8));
    headers.back().sh_info = static_cast<std::uint32_t>(i + 1);
    headers.back().sh_link = symtab;
    headers.back().sh_entsize = sizeof(Elf64_Rela);
  }
  headers.push_back(header(section_names, ".symtab", SHT_SYMTAB, 0,
                           file.append(File::bytes_of_all(table), 8),
                           table.size() * sizeof(Elf64_Sym), 8));
  headers.back().sh_info = first_global;
  headers.back().sh_link = symtab + 1;
  headers.back().sh_entsize = sizeof(Elf64_Sym);
  headers.push_back(header(section_names, ".strtab", SHT_STRTAB, 0,
                           file.append(bytes_of(symbol_names.all()), 1), symbol_names.all().size(),
                           1));

  // Our own tables.
  const auto own = [&](std::string_view name, std::span<const std::byte> bytes,
                       std::uint64_t entry) {
    headers.push_back(header(section_names, std::string(name), SHT_PROGBITS, 0,
                             file.append(bytes, 8), bytes.size(), 8));
    headers.back().sh_entsize = entry;
  };
  std::vector<patch_file::Symbol> bindings;
  for (std::uint32_t i : order) {
    const Symbol& s = symbols_[i];
    if (!s.is_bound) continue;
    bindings.push_back({place[i], s.binding.kind, s.binding.target,
                        s.binding.is_function ? patch_file::symbol_is_function : 0u,
                        s.binding.value, texts.add(s.binding.version),
                        texts.add(s.binding.library)});
  }
  std::vector<patch_file::Function> functions;
  for (const FunctionRecord& f : functions_) {
    patch_file::Function r = f.record;
    r.name = texts.add(f.name);
    r.symbol = (r.flags & patch_file::function_is_part) != 0 ? 0 : place[r.symbol];
    functions.push_back(r);
  }
  patch_file::Header head{};
  std::memcpy(head.magic, patch_file::magic, sizeof head.magic);
  head.version = patch_file::version;
  head.targets = static_cast<std::uint32_t>(targets_.size());
  head.functions = static_cast<std::uint32_t>(functions.size());
  head.symbols = static_cast<std::uint32_t>(bindings.size());
  std::vector<std::byte> target_bytes;
  const auto add = [&](const auto& value) {
    const auto bytes = std::as_bytes(std::span(&value, 1));
    target_bytes.insert(target_bytes.end(), bytes.begin(), bytes.end());
  };
  add(head);
  for (const Target& t : targets_) {
    add(patch_file::Target{texts.add(t.name), texts.add(t.build_id), t.flags, 0});
  }
  own(patch_file::target_section, target_bytes, 0);
  own(patch_file::funcs_section, File::bytes_of_all(functions), sizeof(patch_file::Function));
  own(patch_file::syms_section, File::bytes_of_all(bindings), sizeof(patch_file::Symbol));
  own(patch_file::info_section, bytes_of(info_), 0);
  own(patch_file::strings_section, bytes_of(texts.all()), 0);

  section_names.add(".shstrtab");
  headers.push_back(header(section_names, ".shstrtab", SHT_STRTAB, 0, 0, 0, 1));
  headers.back().sh_offset = file.append(bytes_of(section_names.all()), 1);
  headers.back().sh_size = section_names.all().size();

  Elf64_Ehdr ehdr{};
  std::memcpy(ehdr.e_ident, ELFMAG, SELFMAG);
  ehdr.e_ident[EI_CLASS] = ELFCLASS64;
  ehdr.e_ident[EI_DATA] = ELFDATA2LSB;
  ehdr.e_ident[EI_VERSION] = EV_CURRENT;
  ehdr.e_type = ET_REL;
  ehdr.e_machine = EM_X86_64;
  ehdr.e_version = EV_CURRENT;
  ehdr.e_ehsize = sizeof(Elf64_Ehdr);
  ehdr.e_shentsize = sizeof(Elf64_Shdr);
  ehdr.e_shoff = file.append(File::bytes_of_all(headers), 8);
  ehdr.e_shnum = static_cast<std::uint16_t>(headers.size());
  ehdr.e_shstrndx = static_cast<std::uint16_t>(headers.size() - 1);
  std::memcpy(file.content_.data(), &ehdr, sizeof ehdr);
  return file.content_;
}

}  // namespace molt::builder
