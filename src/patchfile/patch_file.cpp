#include "patchfile/patch_file.hpp"

#include <errno.h>

#include <algorithm>
#include <cstring>

#include "elf/read.hpp"

namespace molt::patchfile {
namespace {

using elf::View;

constexpr std::uint64_t most_mapped = std::uint64_t{64} << 20;
constexpr std::uint64_t most_alignment = 4096;

tl::unexpected<Error> bad(const char* what) {
  return fail(ENOEXEC, "damaged patch file: %s; build it again", what);
}

std::optional<Elf64_Ehdr> header_of(View file) {
  auto header = elf::read<Elf64_Ehdr>(file, 0);
  if (!header || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 ||
      header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_ident[EI_DATA] != ELFDATA2LSB ||
      header->e_type != ET_REL || header->e_machine != EM_X86_64 ||
      header->e_shentsize != sizeof(Elf64_Shdr)) {
    return std::nullopt;
  }
  return header;
}

struct Headers {
  std::vector<Elf64_Shdr> all;
  View names;

  static std::optional<Headers> read(View file) {
    const auto header = header_of(file);
    if (!header || header->e_shnum == 0) return std::nullopt;
    auto all = elf::read_array<Elf64_Shdr>(file, header->e_shoff, header->e_shnum);
    if (!all || header->e_shstrndx >= all->size()) return std::nullopt;
    const Elf64_Shdr& names = (*all)[header->e_shstrndx];
    const auto text = elf::part(file, names.sh_offset, names.sh_size);
    if (!text) return std::nullopt;
    return Headers{std::move(*all), *text};
  }
  std::string_view name(const Elf64_Shdr& section) const {
    return elf::text_at(names, section.sh_name).value_or("");
  }
  const Elf64_Shdr* named(std::string_view wanted) const {
    for (const Elf64_Shdr& section : all) {
      if (name(section) == wanted) return &section;
    }
    return nullptr;
  }
};

}  // namespace

unsigned relocated_bytes(std::uint32_t type) {
  switch (type) {
    case R_X86_64_64:
    case R_X86_64_PC64:
      return 8;
    case R_X86_64_PC32:
    case R_X86_64_PLT32:
    case R_X86_64_GOTPCREL:
    case R_X86_64_GOTPCRELX:
    case R_X86_64_REX_GOTPCRELX:
    case R_X86_64_32:
    case R_X86_64_32S:
    case R_X86_64_TLSGD:
    case R_X86_64_TLSLD:
    case R_X86_64_DTPOFF32:
    case R_X86_64_GOTTPOFF:
    case R_X86_64_TPOFF32:
      return 4;
    default:
      return 0;
  }
}

struct PatchFile::Parser {
  View file;
  PatchFile& out;
  Headers headers{};
  View strings{};
  std::vector<std::uint32_t> mapped{};  // file's section index -> in sections_ + 1; 0: not mapped

  std::optional<std::string_view> text(std::uint32_t offset) const {
    return elf::text_at(strings, offset);
  }
  std::optional<View> content(std::string_view name) const {
    const Elf64_Shdr* section = headers.named(name);
    if (section == nullptr || section->sh_type == SHT_NOBITS) return std::nullopt;
    return elf::part(file, section->sh_offset, section->sh_size);
  }

  Status run() {
    auto read = Headers::read(file);
    if (!read) return bad("no section headers");
    headers = std::move(*read);
    const auto target = content(abi::target_section);
    const auto given = content(abi::strings_section);
    if (!target || !given) return bad("no .molt.target or .molt.strings");
    strings = *given;
    const auto header = elf::read<abi::Header>(*target, 0);
    if (!header || std::memcmp(header->magic, abi::magic, sizeof abi::magic) != 0) {
      return bad("no header in .molt.target");
    }
    if (header->version != abi::version) {
      return fail(ENOEXEC,
                  "a patch file of version %u, this is a reader of version %u; build it "
                  "with the `molt` that the process has",
                  header->version, abi::version);
    }
    if (Status ok = read_targets(*target, *header); !ok) return ok;
    if (Status ok = read_sections(); !ok) return ok;
    if (Status ok = read_symbols(*header); !ok) return ok;
    if (Status ok = read_relocations(); !ok) return ok;
    if (Status ok = read_functions(*header); !ok) return ok;
    return read_info();
  }

  Status read_targets(View content, const abi::Header& header) {
    const auto all = elf::read_array<abi::Target>(content, sizeof(abi::Header), header.targets);
    if (!all || all->empty()) return bad("targets");
    for (const abi::Target& one : *all) {
      const auto name = text(one.name), id = text(one.build_id);
      if (!name || !id || id->empty()) return bad("the name or build-id of a target");
      out.targets_.push_back({*name, *id, (one.flags & abi::target_is_program) != 0,
                              (one.flags & abi::target_is_low) != 0});
    }
    return {};
  }

  Status read_sections() {
    std::uint64_t total = 0;
    mapped.resize(headers.all.size());
    for (std::size_t i = 0; i < headers.all.size(); ++i) {
      const Elf64_Shdr& h = headers.all[i];
      if ((h.sh_flags & SHF_ALLOC) == 0) continue;
      Section section;
      section.name = headers.name(h);
      if (h.sh_type == SHT_NOBITS) {
        if (h.sh_flags & SHF_EXECINSTR) return bad("code without content");
      } else if (h.sh_type == SHT_PROGBITS || h.sh_type == SHT_X86_64_UNWIND) {
        const auto bytes = elf::part(file, h.sh_offset, h.sh_size);
        if (!bytes) return bad("a section that leaves the file");
        section.content = *bytes;
      } else {
        return bad("a section of a type that cannot be mapped");
      }
      section.size = h.sh_size;
      section.alignment = std::max<std::uint64_t>(h.sh_addralign, 1);
      if ((section.alignment & (section.alignment - 1)) != 0 ||
          section.alignment > most_alignment) {
        return bad("the alignment of a section");
      }
      if (section.size > most_mapped || (total += section.size + section.alignment) > most_mapped) {
        return bad("more than 64 MiB to be mapped");
      }
      section.index = static_cast<std::uint32_t>(i);
      section.target = h.sh_info;
      if (section.target >= out.targets_.size()) return bad("the target of a section");
      section.executable = (h.sh_flags & SHF_EXECINSTR) != 0;
      section.writable = (h.sh_flags & SHF_WRITE) != 0;
      if (section.executable && section.writable) return bad("code that is writable");
      if (h.sh_flags & SHF_TLS) return bad("thread-local storage of its own");
      out.sections_.push_back(section);
      mapped[i] = static_cast<std::uint32_t>(out.sections_.size());
    }
    return {};
  }

  Status read_symbols(const abi::Header& header) {
    const Elf64_Shdr* table = headers.named(".symtab");
    if (table == nullptr || table->sh_type != SHT_SYMTAB || table->sh_link >= headers.all.size()) {
      return bad("no symbol table");
    }
    const Elf64_Shdr& names_of = headers.all[table->sh_link];
    const auto names = elf::part(file, names_of.sh_offset, names_of.sh_size);
    const auto raw =
        elf::read_array<Elf64_Sym>(file, table->sh_offset, table->sh_size / sizeof(Elf64_Sym));
    if (!names || !raw || raw->empty()) return bad("the symbol table");
    out.symbols_.resize(raw->size());
    std::vector<bool> known(raw->size());
    known[0] = true;
    for (std::size_t i = 1; i < raw->size(); ++i) {
      const Elf64_Sym& sym = (*raw)[i];
      Symbol& symbol = out.symbols_[i];
      const auto name = elf::text_at(*names, sym.st_name);
      if (!name) return bad("the name of a symbol");
      symbol.name = *name;
      symbol.type = ELF64_ST_TYPE(sym.st_info);
      symbol.value = sym.st_value;
      symbol.size = sym.st_size;
      symbol.is_function = symbol.type == STT_FUNC;
      if (sym.st_shndx == SHN_UNDEF) continue;
      known[i] = true;
      if (sym.st_shndx == SHN_ABS) continue;
      if (sym.st_shndx >= mapped.size()) return bad("the section of a symbol");
      if (mapped[sym.st_shndx] == 0) {
        known[i] = false;  // of a table: nothing may refer to it
        continue;
      }
      symbol.meaning = Meaning::section;
      symbol.section = mapped[sym.st_shndx] - 1;
      symbol.target = out.sections_[symbol.section].target;
      if (!elf::within(sym.st_value, sym.st_size, out.sections_[symbol.section].size)) {
        return bad("a symbol that leaves its section");
      }
    }
    if (Status ok = read_bindings(header, *raw, known); !ok) return ok;
    bound = std::move(known);
    return {};
  }
  std::vector<bool> bound{};  // symbols that mean something

  Status read_bindings(const abi::Header& header, const std::vector<Elf64_Sym>& raw,
                       std::vector<bool>& known) {
    if (header.symbols == 0) return {};
    const auto table = content(abi::syms_section);
    const auto all = table ? elf::read_array<abi::Symbol>(*table, 0, header.symbols) : std::nullopt;
    if (!all) return bad(".molt.syms");
    for (const abi::Symbol& one : *all) {
      if (one.symbol == 0 || one.symbol >= raw.size() || known[one.symbol] ||
          raw[one.symbol].st_shndx != SHN_UNDEF || one.target >= out.targets_.size()) {
        return bad("an entry of .molt.syms");
      }
      const auto version = text(one.version), library = text(one.library);
      if (!version || !library) return bad("a text of .molt.syms");
      Symbol& symbol = out.symbols_[one.symbol];
      switch (one.binding) {
        case abi::Binding::image:
          symbol.meaning = Meaning::image;
          break;
        case abi::Binding::dynamic:
          symbol.meaning = Meaning::dynamic;
          if (symbol.name.empty()) return bad("a dynamic symbol without a name");
          break;
        case abi::Binding::tls:
          symbol.meaning = Meaning::tls;
          break;
        default:
          return bad("a binding of .molt.syms");
      }
      symbol.target = one.target;
      symbol.value = one.value;
      symbol.version = *version;
      symbol.library = *library;
      symbol.is_function = (one.flags & abi::symbol_is_function) != 0;
      known[one.symbol] = true;
    }
    return {};
  }

  Status read_relocations() {
    for (const Elf64_Shdr& h : headers.all) {
      if (h.sh_type == SHT_REL && h.sh_info < mapped.size() && mapped[h.sh_info] != 0) {
        return bad("relocations without addends");
      }
      if (h.sh_type != SHT_RELA || h.sh_info >= mapped.size() || mapped[h.sh_info] == 0) continue;
      Section& section = out.sections_[mapped[h.sh_info] - 1];
      if (!section.relocations.empty()) return bad("a section that is relocated twice");
      auto all = elf::read_array<Elf64_Rela>(file, h.sh_offset, h.sh_size / sizeof(Elf64_Rela));
      if (!all) return bad("a table of relocations");
      for (const Elf64_Rela& one : *all) {
        const auto type = static_cast<std::uint32_t>(ELF64_R_TYPE(one.r_info));
        const std::uint64_t symbol = ELF64_R_SYM(one.r_info);
        const unsigned bytes = relocated_bytes(type);
        if (bytes == 0) {
          return fail(ENOEXEC,
                      "damaged patch file: a relocation of type %u in %.*s; build it again", type,
                      static_cast<int>(section.name.size()), section.name.data());
        }
        if (!elf::within(one.r_offset, bytes, section.content.size())) {
          return bad("a relocation that leaves its section");
        }
        if (symbol >= out.symbols_.size() || !bound[symbol]) {
          return fail(
              ENOEXEC, "damaged patch file: symbol %.100s is bound to nothing; build it again",
              symbol < out.symbols_.size() ? std::string(out.symbols_[symbol].name).c_str() : "?");
        }
        const bool of_tls = type == R_X86_64_TLSGD || type == R_X86_64_DTPOFF32 ||
                            type == R_X86_64_GOTTPOFF || type == R_X86_64_TPOFF32;
        const Meaning meaning = out.symbols_[symbol].meaning;
        // Of TLSLD only the object counts. A dynamic symbol shows what it is when it is looked up.
        const bool fits = meaning == Meaning::tls ? of_tls || type == R_X86_64_TLSLD
                                                  : !of_tls || meaning == Meaning::dynamic;
        if (!fits) return bad("a thread-local relocation");
      }
      section.relocations = std::move(*all);
    }
    return {};
  }

  Status read_functions(const abi::Header& header) {
    const auto table = content(abi::funcs_section);
    if (header.functions == 0 || !table) return bad("it replaces nothing");
    if (!elf::within(0, std::uint64_t{header.functions} * sizeof(abi::Function), table->size())) {
      return bad(".molt.funcs");
    }
    for (std::uint32_t i = 0; i < header.functions; ++i) {
      const std::uint64_t at = std::uint64_t{i} * sizeof(abi::Function);
      const auto one = *elf::read<abi::Function>(*table, at);
      const auto hash = [&](std::size_t offset) {
        const auto* bytes = reinterpret_cast<const unsigned char*>(table->data()) + at + offset;
        return std::span<const unsigned char, 16>(bytes, 16);
      };
      const auto name = text(one.name);
      const bool is_part = (one.flags & abi::function_is_part) != 0;
      if (!name || name->empty() || one.target >= out.targets_.size() || one.old_size == 0 ||
          one.old_address + one.old_size < one.old_address || (is_part && i == 0)) {
        return bad("an entry of .molt.funcs");
      }
      if (!is_part) {
        const bool is_defined = one.symbol != 0 && one.symbol < out.symbols_.size() &&
                                bound[one.symbol] &&
                                out.symbols_[one.symbol].meaning == Meaning::section;
        if (!is_defined || out.symbols_[one.symbol].target != one.target ||
            !out.sections_[out.symbols_[one.symbol].section].executable) {
          return bad("a replacement that is no code of the patch");
        }
      }
      out.functions_.push_back(Function{
          *name, one.target, is_part ? 0 : one.symbol, is_part, one.old_address, one.old_size,
          hash(offsetof(abi::Function, old_hash)), hash(offsetof(abi::Function, new_hash))});
    }
    return {};
  }

  Status read_info() {
    auto rest = content(abi::info_section).value_or(View());
    while (!rest.empty()) {
      const auto line = elf::text_at(rest, 0);
      if (!line) return bad(".molt.info");
      const std::size_t equals = line->find('=');
      if (equals == std::string_view::npos) return bad("an entry of .molt.info");
      out.info_.push_back({line->substr(0, equals), line->substr(equals + 1)});
      rest = rest.subspan(line->size() + 1);
    }
    return {};
  }
};

bool PatchFile::is_one(std::span<const std::byte> file) {
  const auto headers = Headers::read(file);
  return headers && headers->named(abi::target_section) != nullptr;
}

Result<PatchFile> PatchFile::parse(std::span<const std::byte> file) {
  PatchFile made;
  if (Status ok = Parser{file, made}.run(); !ok) return pass(ok);
  return made;
}

std::string_view PatchFile::info(std::string_view key) const {
  for (const Info& one : info_) {
    if (one.key == key) return one.value;
  }
  return "";
}

bool PatchFile::has_flag(std::string_view flag) const {
  return std::any_of(info_.begin(), info_.end(), [&](const Info& one) {
    return one.key == abi::info::flag && one.value == flag;
  });
}

std::optional<std::size_t> PatchFile::section_named(std::string_view name) const {
  for (std::size_t i = 0; i < sections_.size(); ++i) {
    if (sections_[i].name == name) return i;
  }
  return std::nullopt;
}

}  // namespace molt::patchfile
