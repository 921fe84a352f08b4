#include "builder/object.hpp"

#include "base/fd.hpp"

#include <fcntl.h>
#include <gelf.h>
#include <libelf.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <unordered_map>

namespace molt::builder {

struct Object::State {
  std::string path;
  Fd fd;
  Elf* elf = nullptr;
  std::vector<ObjectSection> sections;
  std::vector<ObjectSymbol> symbols;
  std::unordered_map<std::string_view, std::uint32_t> by_name;
  std::string_view compiler;
  bool has_lto = false;

  ~State() { elf_end(elf); }

  Status read_sections();
  Status read_symbols();
  Status read_relocations();
  void read_groups();
};

namespace {

std::span<const std::byte> bytes_of(Elf_Scn* section) {
  Elf_Data* data = elf_getdata(section, nullptr);
  if (data == nullptr || data->d_buf == nullptr) return {};
  return {static_cast<const std::byte*>(data->d_buf), data->d_size};
}

std::string_view string_at(Elf* elf, std::size_t table, std::size_t offset) {
  const char* text = elf_strptr(elf, table, offset);
  return text == nullptr ? std::string_view{} : std::string_view{text};
}

}  // namespace

Status Object::State::read_sections() {
  std::size_t count = 0;
  std::size_t names = 0;
  if (elf_getshdrnum(elf, &count) != 0 || elf_getshdrstrndx(elf, &names) != 0) {
    return fail(ENOEXEC, "%s: %s", path.c_str(), elf_errmsg(-1));
  }
  sections.resize(std::max<std::size_t>(count, 1));
  bool has_code = false;
  for (std::size_t i = 1; i < count; ++i) {
    Elf_Scn* section = elf_getscn(elf, i);
    GElf_Shdr header;
    if (section == nullptr || gelf_getshdr(section, &header) == nullptr) {
      return fail(ENOEXEC, "%s: section %zu: %s", path.c_str(), i, elf_errmsg(-1));
    }
    ObjectSection& to = sections[i];
    to.name = string_at(elf, names, header.sh_name);
    to.type = header.sh_type;
    to.flags = header.sh_flags;
    to.size = header.sh_size;
    to.alignment = std::max<std::uint64_t>(header.sh_addralign, 1);
    to.entry_size = header.sh_entsize;
    to.link = header.sh_link;
    to.info = header.sh_info;
    if (header.sh_type != SHT_NOBITS && header.sh_size != 0) {
      to.bytes = bytes_of(section);
      if (to.bytes.size() != header.sh_size) {
        return fail(ENOEXEC, "%s: section %zu leaves the file", path.c_str(), i);
      }
    }
    has_code |= to.is_code() && to.size != 0;
    has_lto |= to.name.starts_with(".gnu.lto_") || to.name == ".llvm.lto";
    if (to.name == ".comment" && to.size > 1) {
      const char* text = reinterpret_cast<const char*>(to.bytes.data());
      // GNU as starts the section with an empty string.
      const std::size_t begin = text[0] == '\0' ? 1 : 0;
      compiler = std::string_view(text + begin, ::strnlen(text + begin, to.size - begin));
    }
  }
  if (has_lto && !has_code) {
    return fail(EILSEQ, "%s: an object of link-time optimisation (-flto) has no machine code yet",
                path.c_str());
  }
  return {};
}

Status Object::State::read_symbols() {
  symbols.resize(1);
  for (std::size_t i = 1; i < sections.size(); ++i) {
    if (sections[i].type != SHT_SYMTAB) continue;
    Elf_Data* data = elf_getdata(elf_getscn(elf, i), nullptr);
    Elf_Data* extended = nullptr;
    for (std::size_t k = 1; k < sections.size(); ++k) {
      if (sections[k].type == SHT_SYMTAB_SHNDX && sections[k].link == i) {
        extended = elf_getdata(elf_getscn(elf, k), nullptr);
      }
    }
    const std::size_t count = data == nullptr ? 0 : data->d_size / sizeof(Elf64_Sym);
    symbols.resize(std::max<std::size_t>(count, 1));
    for (std::size_t k = 1; k < count; ++k) {
      GElf_Sym from;
      Elf32_Word wide = 0;
      if (gelf_getsymshndx(data, extended, static_cast<int>(k), &from, &wide) == nullptr) {
        return fail(ENOEXEC, "%s: symbol %zu: %s", path.c_str(), k, elf_errmsg(-1));
      }
      ObjectSymbol& to = symbols[k];
      to.bind = GELF_ST_BIND(from.st_info);
      to.type = GELF_ST_TYPE(from.st_info);
      to.visibility = GELF_ST_VISIBILITY(from.st_other);
      to.value = from.st_value;
      to.size = from.st_size;
      if (to.type != STT_SECTION) to.name = string_at(elf, sections[i].link, from.st_name);
      const std::uint32_t index = from.st_shndx == SHN_XINDEX ? wide : from.st_shndx;
      to.is_absolute = from.st_shndx == SHN_ABS;
      to.is_common = from.st_shndx == SHN_COMMON;
      if (to.is_absolute || to.is_common || index == SHN_UNDEF) continue;
      if (index >= sections.size() || to.value > sections[index].size) {
        return fail(ENOEXEC, "%s: symbol %zu leaves its section", path.c_str(), k);
      }
      to.section = index;
      if (!to.is_section()) {
        sections[index].symbols.push_back(static_cast<std::uint32_t>(k));
      }
    }
    break;
  }
  for (ObjectSection& section : sections) {
    std::stable_sort(
        section.symbols.begin(), section.symbols.end(),
        [this](std::uint32_t a, std::uint32_t b) { return symbols[a].value < symbols[b].value; });
  }
  for (std::uint32_t k = 1; k < symbols.size(); ++k) {
    if (!symbols[k].name.empty() && symbols[k].type != STT_FILE)
      by_name.emplace(symbols[k].name, k);
  }
  return {};
}

Status Object::State::read_relocations() {
  for (std::size_t i = 1; i < sections.size(); ++i) {
    if (sections[i].type == SHT_REL) {
      return fail(ENOEXEC, "%s: relocations without addends", path.c_str());
    }
    if (sections[i].type != SHT_RELA || sections[i].info >= sections.size()) continue;
    ObjectSection& target = sections[sections[i].info];
    // Places in what it will be (-gz); only debug information is compressed, and that libdw reads.
    if ((target.flags & SHF_COMPRESSED) != 0 || target.name.starts_with(".zdebug")) continue;
    const auto bytes = sections[i].bytes;
    for (std::size_t at = 0; at + sizeof(Elf64_Rela) <= bytes.size(); at += sizeof(Elf64_Rela)) {
      Elf64_Rela from;
      std::memcpy(&from, bytes.data() + at, sizeof from);
      const std::uint32_t symbol = ELF64_R_SYM(from.r_info);
      if (symbol >= symbols.size() || from.r_offset >= target.size) {
        return fail(ENOEXEC, "%s: a relocation leaves section %.80s", path.c_str(),
                    std::string(target.name).c_str());
      }
      target.relocations.push_back({from.r_offset, from.r_addend,
                                    static_cast<std::uint32_t>(ELF64_R_TYPE(from.r_info)), symbol});
    }
    std::stable_sort(target.relocations.begin(), target.relocations.end(),
                     [](const Relocation& a, const Relocation& b) { return a.offset < b.offset; });
  }
  return {};
}

void Object::State::read_groups() {
  for (const ObjectSection& group : sections) {
    if (group.type != SHT_GROUP || group.info >= symbols.size()) continue;
    const ObjectSymbol& symbol = symbols[group.info];
    const std::string_view signature =
        symbol.is_section() ? sections[symbol.section].name : symbol.name;
    for (std::size_t at = 4; at + 4 <= group.bytes.size(); at += 4) {
      std::uint32_t member;
      std::memcpy(&member, group.bytes.data() + at, sizeof member);
      if (member < sections.size()) sections[member].group = signature;
    }
  }
}

Result<Object> Object::read(const std::string& path) {
  auto state = std::make_unique<State>();
  state->path = path;
  state->fd = Fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!state->fd) return fail_errno(errno, "cannot open the object %s", path.c_str());
  elf_version(EV_CURRENT);
  state->elf = elf_begin(state->fd.get(), ELF_C_READ, nullptr);
  GElf_Ehdr header;
  if (state->elf == nullptr || elf_kind(state->elf) != ELF_K_ELF ||
      gelf_getehdr(state->elf, &header) == nullptr) {
    std::uint32_t magic = 0;
    const bool is_bitcode = ::pread(state->fd.get(), &magic, sizeof magic, 0) == sizeof magic &&
                            (magic == 0xdec04342 || magic == 0x0b17c0de);
    if (is_bitcode) {
      return fail(EILSEQ, "%s: an object of link-time optimisation (-flto) has no machine code yet",
                  path.c_str());
    }
    return fail(ENOEXEC, "%s: not an ELF object", path.c_str());
  }
  if (header.e_type != ET_REL || header.e_machine != EM_X86_64 ||
      header.e_ident[EI_CLASS] != ELFCLASS64) {
    return fail(ENOEXEC, "%s: not a relocatable object for x86-64", path.c_str());
  }
  if (auto done = state->read_sections(); !done) return pass(done);
  if (auto done = state->read_symbols(); !done) return pass(done);
  if (auto done = state->read_relocations(); !done) return pass(done);
  state->read_groups();
  return Object(std::move(state));
}

Object::Object(std::unique_ptr<State> state) : state_(std::move(state)) {}
Object::Object(Object&&) noexcept = default;
Object& Object::operator=(Object&&) noexcept = default;
Object::~Object() = default;

const std::string& Object::path() const { return state_->path; }
std::span<const ObjectSection> Object::sections() const { return state_->sections; }
std::span<const ObjectSymbol> Object::symbols() const { return state_->symbols; }

const ObjectSection& Object::section_of(const ObjectSymbol& symbol) const {
  return state_->sections[symbol.section];
}

std::uint32_t Object::find_section(std::string_view name) const {
  for (std::uint32_t i = 1; i < state_->sections.size(); ++i) {
    if (state_->sections[i].name == name) return i;
  }
  return 0;
}

std::uint32_t Object::find_symbol(std::string_view name) const {
  const auto found = state_->by_name.find(name);
  return found == state_->by_name.end() ? 0 : found->second;
}

std::string_view Object::compiler() const { return state_->compiler; }
bool Object::has_lto_code() const { return state_->has_lto; }

}  // namespace molt::builder
