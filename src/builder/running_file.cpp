#include "builder/running_file.hpp"

#include "base/fd.hpp"
#include "elf/read.hpp"

#include <elfutils/libdwelf.h>
#include <fcntl.h>
#include <gelf.h>
#include <libelf.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <set>

namespace molt::builder {
namespace {

Result<std::vector<std::byte>> read_file(const std::string& path) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno(errno, "cannot open %s", path.c_str());
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode)) {
    return fail(EINVAL, "%s is not a file", path.c_str());
  }
  std::vector<std::byte> bytes(static_cast<std::size_t>(status.st_size));
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::read(fd.get(), bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, "cannot read %s", path.c_str());
    if (n == 0) return fail(EIO, "%s became shorter while it was read", path.c_str());
    done += static_cast<std::size_t>(n);
  }
  return bytes;
}

// The dynamic table's entries of one kind of file: tag to value, the first of each.
std::map<std::int64_t, std::uint64_t> dynamic_table(const elf::Image& image) {
  std::map<std::int64_t, std::uint64_t> table;
  for (const Elf64_Phdr& segment : image.segments()) {
    if (segment.p_type != PT_DYNAMIC) continue;
    const auto bytes = elf::part(image.file(), segment.p_offset, segment.p_filesz);
    if (!bytes) break;
    for (std::uint64_t at = 0; auto entry = elf::read<Elf64_Dyn>(*bytes, at);
         at += sizeof(Elf64_Dyn)) {
      if (entry->d_tag == DT_NULL) break;
      table.emplace(entry->d_tag, entry->d_un.d_val);
    }
  }
  return table;
}

// From an address to the end of the segment that it is in.
std::span<const std::byte> rest_at(const elf::Image& image, std::uint64_t address) {
  for (const Elf64_Phdr& segment : image.segments()) {
    if (segment.p_type != PT_LOAD || address < segment.p_vaddr) continue;
    const std::uint64_t offset = address - segment.p_vaddr;
    if (offset >= segment.p_filesz) continue;
    const auto bytes =
        elf::part(image.file(), segment.p_offset + offset, segment.p_filesz - offset);
    if (bytes) return *bytes;
  }
  return {};
}

struct NeededVersion {
  std::string_view version;
  std::string_view library;
};

// DT_VERNEED: which library each numbered version is wanted from.
std::unordered_map<std::uint16_t, NeededVersion> needed_versions(
    const elf::Image& image, const std::map<std::int64_t, std::uint64_t>& table) {
  std::unordered_map<std::uint16_t, NeededVersion> versions;
  const auto at = table.find(DT_VERNEED);
  const auto strings_at = table.find(DT_STRTAB);
  if (at == table.end() || strings_at == table.end()) return versions;
  const auto bytes = rest_at(image, at->second);
  const auto strings = rest_at(image, strings_at->second);
  std::uint64_t offset = 0;
  while (auto need = elf::read<Elf64_Verneed>(bytes, offset)) {
    const auto library = elf::text_at(strings, need->vn_file);
    std::uint64_t aux_at = offset + need->vn_aux;
    for (unsigned i = 0; i < need->vn_cnt; ++i) {
      const auto aux = elf::read<Elf64_Vernaux>(bytes, aux_at);
      if (!aux) break;
      const auto name = elf::text_at(strings, aux->vna_name);
      versions[aux->vna_other & 0x7fff] = {name.value_or(""), library.value_or("")};
      if (aux->vna_next == 0) break;
      aux_at += aux->vna_next;
    }
    if (need->vn_next == 0) break;
    offset += need->vn_next;
  }
  return versions;
}

// DT_RELR: even words are addresses, odd ones a bitmap of the 63 words that follow the last.
template <class F>
void for_each_relr(std::span<const std::byte> words, F&& f) {
  std::uint64_t next = 0;
  for (std::uint64_t at = 0; auto word = elf::read<std::uint64_t>(words, at); at += 8) {
    if ((*word & 1) == 0) {
      f(*word);
      next = *word + 8;
      continue;
    }
    for (unsigned bit = 1; bit < 64; ++bit) {
      if ((*word >> bit & 1) != 0) f(next + 8 * (bit - 1));
    }
    next += std::uint64_t{8} * 63;
  }
}

// ld.so.cache, the format of glibc 2.2 and later: soname to path.
std::unordered_map<std::string, std::string> loader_cache() {
  constexpr std::string_view magic = "glibc-ld.so.cache1.1";
  struct Entry {
    std::int32_t flags;
    std::uint32_t key, value, os_version;
    std::uint64_t hwcap;
  };
  constexpr std::int32_t x86_64_elf = 0x0303;
  std::unordered_map<std::string, std::string> paths;
  const auto file = read_file("/etc/ld.so.cache");
  if (!file) return paths;
  const std::string_view text = elf::as_text(*file);
  const std::size_t begin = text.find(magic);
  if (begin == text.npos) return paths;
  const elf::View cache = elf::View(*file).subspan(begin);
  const auto count = elf::read<std::uint32_t>(cache, magic.size());
  for (std::uint32_t i = 0; count && i < *count; ++i) {
    const auto entry = elf::read<Entry>(cache, 48 + std::uint64_t{i} * sizeof(Entry));
    if (!entry) break;
    if (entry->flags != x86_64_elf || entry->hwcap != 0) continue;
    const auto name = elf::text_at(cache, entry->key);
    const auto path = elf::text_at(cache, entry->value);
    if (name && path) paths.emplace(*name, *path);
  }
  return paths;
}

// Of a file whose segments have no bytes, as separate debug files have none.
std::string build_id_of(int fd) {
  elf_version(EV_CURRENT);
  Elf* file = elf_begin(fd, ELF_C_READ, nullptr);
  const void* id = nullptr;
  const ssize_t bytes = file == nullptr ? 0 : dwelf_elf_gnu_build_id(file, &id);
  std::string text;
  if (bytes > 0) {
    text = elf::hexadecimal({static_cast<const std::byte*>(id), static_cast<std::size_t>(bytes)});
  }
  elf_end(file);
  return text;
}

// The file symbols of a .symtab, whoever it belongs to.
std::vector<std::string> source_names_of(int fd) {
  std::set<std::string> names;
  Elf* file = elf_begin(fd, ELF_C_READ, nullptr);
  for (Elf_Scn* section = elf_nextscn(file, nullptr); section != nullptr;
       section = elf_nextscn(file, section)) {
    GElf_Shdr header;
    if (gelf_getshdr(section, &header) == nullptr || header.sh_type != SHT_SYMTAB) continue;
    Elf_Data* data = elf_getdata(section, nullptr);
    GElf_Sym symbol;
    for (int i = 0; data != nullptr && gelf_getsym(data, i, &symbol) != nullptr; ++i) {
      if (GELF_ST_TYPE(symbol.st_info) != STT_FILE) continue;
      const char* name = elf_strptr(file, header.sh_link, symbol.st_name);
      if (name != nullptr && *name != '\0') names.insert(name);
    }
  }
  elf_end(file);
  return {names.begin(), names.end()};
}

}  // namespace

const LoaderRelocation* RunningFile::State::relocation_at(std::uint64_t address) const {
  const auto found = std::lower_bound(
      relocations.begin(), relocations.end(), address,
      [](const LoaderRelocation& one, std::uint64_t wanted) { return one.address < wanted; });
  return found != relocations.end() && found->address == address ? &*found : nullptr;
}

std::string_view RunningFile::State::plt_target(std::uint64_t address) const {
  const auto found = plt_.find(address);
  return found == plt_.end() ? std::string_view{} : found->second;
}

bool RunningFile::State::is_mapped(std::uint64_t address) const {
  return std::ranges::any_of(image->segments(), [address](const Elf64_Phdr& segment) {
    // One past the end is where an empty section at the end lies.
    return segment.p_type == PT_LOAD && address >= segment.p_vaddr &&
           address - segment.p_vaddr <= segment.p_memsz;
  });
}

bool RunningFile::State::is_code(std::uint64_t address) const {
  return std::ranges::any_of(image->segments(), [address](const Elf64_Phdr& segment) {
    return segment.p_type == PT_LOAD && (segment.p_flags & PF_X) != 0 &&
           address >= segment.p_vaddr && address - segment.p_vaddr < segment.p_filesz;
  });
}

Status RunningFile::State::read_dynamic() {
  const auto table = dynamic_table(*image);
  const elf::SymbolTable& symbols_table = image->dynamic_symbols();
  image->for_each_relocation([&](const Elf64_Rela& from) {
    const std::uint32_t symbol = ELF64_R_SYM(from.r_info);
    relocations.push_back({from.r_offset, from.r_addend,
                           static_cast<std::uint32_t>(ELF64_R_TYPE(from.r_info)),
                           symbol < symbols_table.size() ? symbols_table[symbol].name : ""});
  });
  // Static programs resolve their indirect functions themselves, from a table that only their own
  // section headers tell of.
  if (table.empty()) {
    for (const Elf64_Shdr& section : image->sections()) {
      if (section.sh_type != SHT_RELA) continue;
      const auto bytes = elf::part(image->file(), section.sh_offset, section.sh_size);
      for (std::uint64_t at = 0; bytes; at += sizeof(Elf64_Rela)) {
        const auto from = elf::read<Elf64_Rela>(*bytes, at);
        if (!from) break;
        if (ELF64_R_TYPE(from->r_info) != R_X86_64_IRELATIVE) continue;
        relocations.push_back({from->r_offset, from->r_addend, R_X86_64_IRELATIVE, ""});
      }
    }
  }
  const auto relr = table.find(DT_RELR);
  const auto relr_bytes = table.find(DT_RELRSZ);
  if (relr != table.end() && relr_bytes != table.end()) {
    auto words = rest_at(*image, relr->second);
    words = words.first(std::min<std::uint64_t>(words.size(), relr_bytes->second));
    for_each_relr(words, [&](std::uint64_t address) {
      const auto word = image->at_address(address, 8);
      if (!word) return;
      relocations.push_back({address,
                             static_cast<std::int64_t>(*elf::read<std::uint64_t>(*word, 0)),
                             R_X86_64_RELATIVE, ""});
    });
  }
  std::ranges::stable_sort(relocations, {}, &LoaderRelocation::address);

  const auto versions = needed_versions(*image, table);
  const auto versym_at = table.find(DT_VERSYM);
  const auto versym =
      versym_at == table.end() ? elf::View{} : elf::View(rest_at(*image, versym_at->second));
  for (std::size_t i = 1; i < symbols_table.size(); ++i) {
    const elf::Symbol symbol = symbols_table[i];
    if (!symbol.undefined()) continue;
    Import import{{}, {}, symbol.type, symbol.weak()};
    if (const auto number = elf::read<std::uint16_t>(versym, 2 * i)) {
      const auto version = versions.find(*number & 0x7fff);
      if (version != versions.end()) {
        import.version = version->second.version;
        import.library = version->second.library;
      }
    }
    imports.emplace(symbol.name, import);
  }
  return {};
}

// A PLT entry is `jmp *slot(%rip)`, perhaps behind endbr64 or with a bnd prefix. Where entries begin
// nobody says but the section's headers; so each such jump through a relocated slot names the 16-byte
// aligned (or 8-byte, .plt.got) place that it belongs to.
void RunningFile::State::index_plt() {
  for (const Elf64_Shdr& section : image->sections()) {
    if (section.sh_type != SHT_PROGBITS || (section.sh_flags & SHF_EXECINSTR) == 0) continue;
    const auto names = image->header().e_shstrndx;
    if (names >= image->sections().size()) continue;
    const Elf64_Shdr& strings = image->sections()[names];
    const auto text = elf::part(image->file(), strings.sh_offset, strings.sh_size);
    const auto name = text ? elf::text_at(*text, section.sh_name) : std::nullopt;
    if (!name || (!name->starts_with(".plt") && *name != ".iplt")) continue;
    const auto bytes = elf::part(image->file(), section.sh_offset, section.sh_size);
    if (!bytes) continue;
    for (std::uint64_t at = 0; at + 6 <= bytes->size(); ++at) {
      if ((*bytes)[at] != std::byte{0xff} || (*bytes)[at + 1] != std::byte{0x25}) continue;
      const auto distance = *elf::read<std::int32_t>(*bytes, at + 2);
      const std::uint64_t slot = section.sh_addr + at + 6 + static_cast<std::int64_t>(distance);
      const LoaderRelocation* relocation = relocation_at(slot);
      if (relocation == nullptr) continue;
      const std::uint64_t entry =
          section.sh_addr + (at & ~std::uint64_t{*name == ".plt.got" ? 7u : 15u});
      std::string_view target = relocation->symbol;
      if (relocation->type == R_X86_64_IRELATIVE) {
        const auto symbol = symbols.at(static_cast<std::uint64_t>(relocation->addend));
        target = symbol && symbol->offset == 0 ? symbol->symbol.name : "";
      }
      plt_.emplace(entry, target);
    }
  }
}

void RunningFile::State::open_libraries() const {
  libraries_opened_ = true;
  const auto cache = loader_cache();
  std::vector<std::string> wanted(image->needed().begin(), image->needed().end());
  std::set<std::string> seen;
  const std::string folder = path.substr(0, path.rfind('/') + 1);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const std::string name = wanted[i];
    if (!seen.insert(name).second) continue;
    std::vector<std::string> paths;
    if (const auto cached = cache.find(name); cached != cache.end())
      paths.push_back(cached->second);
    for (const char* directory : {"/lib/x86_64-linux-gnu/", "/usr/lib/x86_64-linux-gnu/", "/lib64/",
                                  "/usr/lib64/", "/lib/", "/usr/lib/", "/usr/local/lib/"}) {
      paths.push_back(directory + name);
    }
    paths.push_back(folder + name);
    for (const std::string& candidate : paths) {
      const auto bytes = read_file(candidate);
      if (!bytes) continue;
      const auto library = elf::Image::parse(*bytes, elf::Purpose::examine);
      if (!library) continue;
      for (std::string_view more : library->needed()) wanted.emplace_back(more);
      const Fd fd(::open(candidate.c_str(), O_RDONLY | O_CLOEXEC));
      // Without its debug file: what it exports is in .dynsym.
      auto table = elf::read_symbols(fd.get(), "", {nullptr, nullptr});
      if (table) libraries_.push_back({name, std::move(*table)});
      break;
    }
  }
}

std::optional<LibrarySymbol> RunningFile::State::find_in_libraries(std::string_view name) const {
  if (!libraries_opened_) open_libraries();
  for (const Library& library : libraries_) {
    const auto found = library.symbols.find(name);
    if (!found || found->bind == STB_LOCAL) continue;
    return LibrarySymbol{library.soname, found->version, found->size, found->type};
  }
  return std::nullopt;
}

Result<RunningFile> RunningFile::open(const std::string& path, const std::string& debug_file) {
  auto state = std::make_unique<State>();
  state->path = path;
  auto bytes = read_file(path);
  if (!bytes) return pass(bytes);
  state->file = std::move(*bytes);
  auto image = elf::Image::parse(state->file, elf::Purpose::examine);
  if (!image) return fail(image.error().code, "%s: %s", path.c_str(), image.error().detail);
  if (image->machine() != EM_X86_64) return fail(ENOEXEC, "%s: not for x86-64", path.c_str());
  state->image = std::move(*image);
  const elf::Image& of = *state->image;
  state->soname = of.soname();
  bool has_interpreter = false;
  for (const Elf64_Phdr& segment : of.segments()) {
    has_interpreter |= segment.p_type == PT_INTERP;
    if (segment.p_type != PT_TLS) continue;
    const std::uint64_t alignment = std::max<std::uint64_t>(segment.p_align, 1);
    state->tls_bytes = (segment.p_memsz + alignment - 1) / alignment * alignment;
  }
  state->is_program = of.type() == ET_EXEC || (of.flags_1() & DF_1_PIE) != 0 ||
                      (has_interpreter && of.soname().empty());
  state->is_pie = of.type() == ET_DYN;

  const Fd own(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  auto symbols = elf::read_symbols(own.get(), path);
  if (!debug_file.empty()) {
    const Fd fd(::open(debug_file.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) return fail_errno(errno, "cannot open the debug file %s", debug_file.c_str());
    const std::string id = build_id_of(fd.get());
    if (id.empty() || id != of.build_id()) {
      return fail(EINVAL, "%s has the build-id '%s', %s has '%s': it is another build's",
                  debug_file.c_str(), id.c_str(), path.c_str(), of.build_id().c_str());
    }
    symbols = elf::read_symbols(fd.get(), "");
    state->source_names = source_names_of(fd.get());
  }
  if (!symbols) return pass(symbols);
  elf_version(EV_CURRENT);
  if (state->source_names.empty()) state->source_names = source_names_of(own.get());
  state->symbols = std::move(*symbols);
  for (std::uint32_t i = 0; i < state->symbols.size(); ++i) {
    const elf::FoundSymbol symbol = state->symbols[i];
    if (symbol.is_thread_local() || symbol.name.empty()) continue;
    state->by_address.emplace(symbol.address, i);
  }
  if (auto done = state->read_dynamic(); !done) return pass(done);
  state->index_plt();
  return RunningFile(std::move(state));
}

RunningFile::RunningFile(std::unique_ptr<State> state) : state_(std::move(state)) {}
RunningFile::RunningFile(RunningFile&&) noexcept = default;
RunningFile& RunningFile::operator=(RunningFile&&) noexcept = default;
RunningFile::~RunningFile() = default;

const std::string& RunningFile::path() const { return state_->path; }
const std::string& RunningFile::build_id() const { return state_->image->build_id(); }
const std::string& RunningFile::soname() const { return state_->soname; }
const std::vector<std::string>& RunningFile::source_names() const { return state_->source_names; }
bool RunningFile::is_program() const { return state_->is_program; }
bool RunningFile::is_position_independent() const { return state_->is_pie; }

std::optional<std::span<const std::byte>> RunningFile::bytes(std::uint64_t address,
                                                             std::uint64_t size) const {
  return state_->image->at_address(address, size);
}

}  // namespace molt::builder
