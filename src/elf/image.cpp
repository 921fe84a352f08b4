#include "elf/image.hpp"

#include "elf/read.hpp"

#include <molt/module.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>

namespace molt::elf {

namespace {

constexpr std::uint64_t page_bytes = 4096;
// User addresses of x86-64 end here; a wider image could never be mapped.
constexpr std::uint64_t address_limit = std::uint64_t{1} << 47;

}  // namespace

Symbol SymbolTable::operator[](std::size_t index) const {
  auto raw =
      read<Elf64_Sym>(entries_, std::uint64_t{index} * sizeof(Elf64_Sym)).value_or(Elf64_Sym{});
  return {
      .name = text_at(strings_, raw.st_name).value_or(std::string_view{}),
      .value = raw.st_value,
      .size = raw.st_size,
      .bind = static_cast<std::uint8_t>(ELF64_ST_BIND(raw.st_info)),
      .type = static_cast<std::uint8_t>(ELF64_ST_TYPE(raw.st_info)),
      .visibility = static_cast<std::uint8_t>(ELF64_ST_VISIBILITY(raw.st_other)),
      .defined = raw.st_shndx != SHN_UNDEF,
  };
}

// The entries of PT_DYNAMIC that matter here. Absent ones are 0.
struct Image::DynamicTable {
  std::uint64_t strings = 0, string_bytes = 0;
  std::uint64_t symbols = 0;
  std::uint64_t hash = 0, gnu_hash = 0;
  std::uint64_t rela = 0, rela_bytes = 0;
  std::uint64_t plt_rela = 0, plt_rela_bytes = 0;
  std::optional<std::uint64_t> soname;
  std::vector<std::uint64_t> needed;
};

Result<Image> Image::parse(std::span<const std::byte> file, Purpose purpose) {
  Image image;
  image.file_ = file;
  if (auto done = image.check_header(purpose); !done) return pass(done);
  // Sections before segments: a file that was cut off lacks its end, where the section headers
  // are, and is then reported in the kernel's words for that.
  if (auto done = image.read_sections(); !done) return pass(done);
  if (auto done = image.read_segments(); !done) return pass(done);
  if (auto done = image.read_dynamic(purpose); !done) return pass(done);
  image.find_static_symbols();
  image.read_notes();
  return image;
}

Status Image::check_header(Purpose purpose) {
  if (file_.empty()) return fail(EINVAL, "the file is empty");
  const std::size_t magic_bytes = std::min<std::size_t>(file_.size(), SELFMAG);
  if (std::memcmp(file_.data(), ELFMAG, magic_bytes) != 0) {
    return fail(ENOEXEC, "Invalid ELF header magic: != \\x7fELF");
  }
  auto header = read<Elf64_Ehdr>(file_, 0);
  if (!header) return fail(ENOEXEC, "Invalid ELF header len %zu", file_.size());
  header_ = *header;

  if (header_.e_ident[EI_CLASS] != ELFCLASS64) {
    return fail(ENOEXEC, "Invalid ELF header class: %d != %d; it is not a 64-bit file",
                header_.e_ident[EI_CLASS], ELFCLASS64);
  }
  if (header_.e_ident[EI_DATA] != ELFDATA2LSB) {
    return fail(ENOEXEC, "Invalid ELF header data encoding: %d != %d", header_.e_ident[EI_DATA],
                ELFDATA2LSB);
  }
  if (header_.e_machine != EM_X86_64) {
    return fail(ENOEXEC, "Invalid architecture in ELF header: %d != %d", header_.e_machine,
                EM_X86_64);
  }
  if (header_.e_type == ET_REL) {
    return fail(ENOEXEC, "Invalid ELF header type: %d != %d; link the object file with -shared",
                ET_REL, ET_DYN);
  }
  const bool program = header_.e_type == ET_EXEC;
  if (header_.e_type != ET_DYN && !(program && purpose == Purpose::examine)) {
    return fail(ENOEXEC, "Invalid ELF header type: %d != %d%s", header_.e_type, ET_DYN,
                program ? "; it is a program, not a shared object" : "");
  }
  return {};
}

Status Image::read_sections() {
  if (header_.e_shoff == 0) return {};
  if (header_.e_shentsize != sizeof(Elf64_Shdr)) {
    return fail(ENOEXEC, "Invalid ELF section header size");
  }
  std::uint64_t count = header_.e_shnum;
  if (count == 0) {
    // From SHN_LORESERVE sections on, their number is in the first one.
    auto first = read<Elf64_Shdr>(file_, header_.e_shoff);
    if (!first) return fail(ENOEXEC, "Invalid ELF section header overflow");
    count = first->sh_size;
  }
  auto sections = read_array<Elf64_Shdr>(file_, header_.e_shoff, count);
  if (!sections) return fail(ENOEXEC, "Invalid ELF section header overflow");
  sections_ = *std::move(sections);

  for (std::size_t i = 1; i < sections_.size(); ++i) {
    const Elf64_Shdr& section = sections_[i];
    if (section.sh_type == SHT_NULL || section.sh_type == SHT_NOBITS) continue;
    if (!within(section.sh_offset, section.sh_size, file_.size())) {
      return fail(ENOEXEC, "Invalid ELF section in module (section %zu type %u)", i,
                  section.sh_type);
    }
  }
  return {};
}

Status Image::read_segments() {
  if (header_.e_phentsize != sizeof(Elf64_Phdr)) {
    return fail(ENOEXEC, "Invalid ELF program header size");
  }
  auto segments = read_array<Elf64_Phdr>(file_, header_.e_phoff, header_.e_phnum);
  if (!segments) return fail(ENOEXEC, "Invalid ELF program header overflow");
  segments_ = *std::move(segments);

  std::optional<std::uint64_t> begin;
  std::uint64_t end = 0;
  for (std::size_t i = 0; i < segments_.size(); ++i) {
    const Elf64_Phdr& segment = segments_[i];
    if (segment.p_type != PT_LOAD) continue;
    // A mapping that reaches past the file's end raises SIGBUS when touched.
    if (!within(segment.p_offset, segment.p_filesz, file_.size())) {
      return fail(ENOEXEC, "Invalid ELF program segment overflow (segment %zu)", i);
    }
    if (segment.p_filesz > segment.p_memsz ||
        !within(segment.p_vaddr, segment.p_memsz, address_limit)) {
      return fail(ENOEXEC, "Invalid ELF program segment size (segment %zu)", i);
    }
    // ELF demands ascending addresses. at_address() and loaded_bytes() rely on them: of two
    // segments in one place the loader would show the later one.
    if (segment.p_vaddr < end) {
      return fail(ENOEXEC, "Invalid ELF program segment order (segment %zu)", i);
    }
    if (!begin) begin = segment.p_vaddr & ~(page_bytes - 1);
    end = segment.p_vaddr + segment.p_memsz;
  }
  if (!begin) return fail(ENOEXEC, "Invalid ELF file: it has no loadable segments");
  loaded_bytes_ = round_up(end, page_bytes) - *begin;
  return {};
}

std::optional<std::span<const std::byte>> Image::at_address(std::uint64_t address,
                                                            std::uint64_t bytes) const {
  for (const Elf64_Phdr& segment : segments_) {
    if (segment.p_type != PT_LOAD || address < segment.p_vaddr) continue;
    const std::uint64_t offset = address - segment.p_vaddr;
    if (!within(offset, bytes, segment.p_filesz)) continue;
    return part(file_, segment.p_offset + offset, bytes);
  }
  return std::nullopt;
}

Status Image::read_dynamic(Purpose purpose) {
  auto segment = std::find_if(segments_.begin(), segments_.end(),
                              [](const Elf64_Phdr& s) { return s.p_type == PT_DYNAMIC; });
  if (segment == segments_.end()) {
    if (purpose == Purpose::examine) return {};
    return fail(ENOEXEC, "Invalid ELF file: it has no dynamic section");
  }
  auto bytes = at_address(segment->p_vaddr, segment->p_filesz);
  if (!bytes) return fail(ENOEXEC, "Invalid ELF dynamic section overflow");

  DynamicTable table;
  for (std::uint64_t at = 0;; at += sizeof(Elf64_Dyn)) {
    auto entry = read<Elf64_Dyn>(*bytes, at);
    if (!entry) return fail(ENOEXEC, "Invalid ELF dynamic section: it does not end");
    const std::uint64_t value = entry->d_un.d_val;
    if (entry->d_tag == DT_NULL) break;
    switch (entry->d_tag) {
      case DT_STRTAB:
        table.strings = value;
        break;
      case DT_STRSZ:
        table.string_bytes = value;
        break;
      case DT_SYMTAB:
        table.symbols = value;
        break;
      case DT_HASH:
        table.hash = value;
        break;
      case DT_GNU_HASH:
        table.gnu_hash = value;
        break;
      case DT_RELA:
        table.rela = value;
        break;
      case DT_RELASZ:
        table.rela_bytes = value;
        break;
      case DT_JMPREL:
        table.plt_rela = value;
        break;
      case DT_PLTRELSZ:
        table.plt_rela_bytes = value;
        break;
      case DT_SONAME:
        table.soname = value;
        break;
      case DT_NEEDED:
        table.needed.push_back(value);
        break;
      case DT_FLAGS:
        flags_ = value;
        break;
      case DT_FLAGS_1:
        flags_1_ = value;
        break;
      default:
        break;
    }
  }

  if (purpose == Purpose::load && (flags_1_ & DF_1_PIE) != 0) {
    return fail(ENOEXEC, "Invalid ELF header type: it is a program, not a shared object");
  }
  if (purpose == Purpose::load && (flags_1_ & DF_1_NOOPEN) != 0) {
    return fail(ENOEXEC, "the file forbids dlopen; link it without -z nodlopen");
  }

  auto strings = at_address(table.strings, table.string_bytes);
  if (!strings || strings->empty() || strings->back() != std::byte{0}) {
    return fail(ENOEXEC, "Invalid ELF dynamic string table");
  }
  if (table.soname) {
    auto soname = text_at(*strings, *table.soname);
    if (!soname) return fail(ENOEXEC, "Invalid ELF dynamic string table: soname outside of it");
    soname_ = *soname;
  }
  for (std::uint64_t offset : table.needed) {
    auto name = text_at(*strings, offset);
    if (!name) return fail(ENOEXEC, "Invalid ELF dynamic string table: library name outside of it");
    needed_.push_back(*name);
  }

  const std::pair<std::uint64_t, std::uint64_t> relocations[] = {
      {table.rela, table.rela_bytes}, {table.plt_rela, table.plt_rela_bytes}};
  for (std::size_t i = 0; i < std::size(relocations); ++i) {
    auto [address, size] = relocations[i];
    if (size == 0) continue;
    auto found = at_address(address, size);
    if (!found) return fail(ENOEXEC, "Invalid ELF relocation table overflow");
    relocations_[i] = *found;
  }
  return find_dynamic_symbols(table);
}

// No entry of the dynamic table says how many symbols there are. DT_HASH does, and so does the
// section header; modules usually have neither DT_HASH nor, when fully stripped, section headers.
// What is then left is all that anybody could look up: the symbols that DT_GNU_HASH reaches (the
// defined ones) and those that relocations name (the undefined ones).
Status Image::find_dynamic_symbols(const DynamicTable& table) {
  auto rest_of_segment = [&](std::uint64_t address) -> View {
    for (const Elf64_Phdr& segment : segments_) {
      if (segment.p_type != PT_LOAD || address < segment.p_vaddr) continue;
      const std::uint64_t offset = address - segment.p_vaddr;
      if (offset >= segment.p_filesz) continue;
      return *part(file_, segment.p_offset + offset, segment.p_filesz - offset);
    }
    return {};
  };
  auto section = std::find_if(sections_.begin(), sections_.end(), [&](const Elf64_Shdr& s) {
    return s.sh_type == SHT_DYNSYM && s.sh_addr == table.symbols;
  });

  std::uint64_t count = 0;
  if (table.hash != 0) {
    // Words: buckets, symbols.
    auto symbols = read<std::uint32_t>(rest_of_segment(table.hash), 4);
    if (!symbols) return fail(ENOEXEC, "Invalid ELF symbol hash table");
    count = *symbols;
  } else if (section != sections_.end()) {
    count = section->sh_size / sizeof(Elf64_Sym);
  } else {
    if (table.gnu_hash != 0) {
      auto end = gnu_hash_end(rest_of_segment(table.gnu_hash));
      if (!end) return fail(ENOEXEC, "Invalid ELF symbol hash table");
      count = *end;
    }
    for_each_relocation([&](const Elf64_Rela& relocation) {
      count = std::max(count, ELF64_R_SYM(relocation.r_info) + 1);
    });
  }
  // Below 2^37, since each of the three ways yields at most 2^32 or what fits in the file.
  auto entries = at_address(table.symbols, count * sizeof(Elf64_Sym));
  if (!entries) return fail(ENOEXEC, "Invalid ELF symbol table overflow");

  auto strings = *at_address(table.strings, table.string_bytes);
  for (std::uint64_t i = 0; i < count; ++i) {
    // The dynamic loader would read a name there without asking.
    if (read<Elf64_Sym>(*entries, i * sizeof(Elf64_Sym))->st_name >= strings.size()) {
      return fail(ENOEXEC, "Invalid ELF symbol name (symbol %" PRIu64 ")", i);
    }
  }
  dynamic_symbols_ = SymbolTable(*entries, strings);
  return {};
}

// Nobody but debuggers and Molt's explanations need .symtab: a damaged one is no reason to refuse.
void Image::find_static_symbols() {
  for (const Elf64_Shdr& section : sections_) {
    if (section.sh_type != SHT_SYMTAB || section.sh_link >= sections_.size()) continue;
    const Elf64_Shdr& linked = sections_[section.sh_link];
    if (linked.sh_type != SHT_STRTAB) continue;
    auto entries = part(file_, section.sh_offset, section.sh_size);
    auto strings = part(file_, linked.sh_offset, linked.sh_size);
    if (entries && strings) static_symbols_ = SymbolTable(*entries, *strings);
    return;
  }
}

void Image::read_notes() {
  for (const Elf64_Phdr& segment : segments_) {
    if (segment.p_type != PT_NOTE) continue;
    auto bytes = part(file_, segment.p_offset, segment.p_filesz);
    if (bytes) read_note_segment(*bytes, segment.p_align == 8 ? 8 : 4);
  }
}

void Image::read_note_segment(View bytes, std::size_t alignment) {
  using namespace std::string_view_literals;
  for_each_note(bytes, alignment, [this](std::string_view owner, std::uint32_t type, View text) {
    if (owner == "Molt\0"sv && type == MOLT_NOTE_INFO) {
      std::string_view record = as_text(text);
      record = record.substr(0, record.find('\0'));
      if (std::size_t equals = record.find('='); equals != record.npos) {
        module_notes_.push_back({record.substr(0, equals), record.substr(equals + 1)});
      }
    } else if (owner == "GNU\0"sv && type == NT_GNU_BUILD_ID) {
      build_id_ = hexadecimal(text);
    }
  });
}

std::optional<std::string_view> Image::note(std::string_view key) const {
  for (const Note& note : module_notes_) {
    if (note.key == key) return note.value;
  }
  return std::nullopt;
}

bool Image::has_export(std::string_view name) const {
  for (Symbol symbol : dynamic_symbols_) {
    if (symbol.exported() && symbol.name == name) return true;
  }
  return false;
}

std::vector<Symbol> Image::undefined_symbols() const {
  std::vector<Symbol> symbols;
  for (Symbol symbol : dynamic_symbols_) {
    if (symbol.undefined()) symbols.push_back(symbol);
  }
  return symbols;
}

}  // namespace molt::elf
