#include "elf/loadable.hpp"

#include <algorithm>
#include <cerrno>
#include <cinttypes>

namespace molt::elf {

namespace {

constexpr std::uint64_t page_bytes = 4096;
constexpr std::uint64_t most_alignment = std::uint64_t{1} << 30;
constexpr std::uint64_t most_thread_local_bytes = std::uint64_t{1} << 30;
// The loader keeps some of each on the stack of whoever calls it.
constexpr std::size_t most_segments = 128;

std::uint64_t page_of(std::uint64_t address) { return address & ~(page_bytes - 1); }
std::uint64_t page_after(std::uint64_t address) { return page_of(address + page_bytes - 1); }
bool power_of_two(std::uint64_t value) { return value != 0 && (value & (value - 1)) == 0; }

// [inner, inner + bytes) in [outer, outer + size), without sums of what the file says.
bool inside(std::uint64_t inner, std::uint64_t bytes, std::uint64_t outer, std::uint64_t size) {
  return inner >= outer && inner - outer <= size && bytes <= size - (inner - outer);
}

tl::unexpected<Error> bad(const char* what) { return fail(ENOEXEC, "Invalid ELF %s", what); }

struct Check {
  const Image& image;
  std::vector<Elf64_Dyn> dynamic{};
  const Elf64_Phdr* thread_local_segment = nullptr;
  std::uint64_t begin = 0, end = 0;  // of the object, in image addresses

  Status run() {
    Status ok = check_segments();
    if (ok) ok = check_special_segments();
    if (ok) ok = check_notes();
    if (ok) ok = check_sections();
    if (ok) read_dynamic();
    if (ok) ok = check_dynamic();
    if (ok) ok = check_gnu_hash();
    if (ok) ok = check_hash();
    if (ok) ok = check_symbols();
    if (ok) ok = check_versions();
    if (ok) ok = check_relocations();
    if (ok) ok = check_constructors();
    return ok;
  }

  // --- reading by address (L1) ------------------------------------------------------------------

  template <class T>
  bool get(std::uint64_t address, T& value) const {
    auto bytes = image.at_address(address, sizeof value);
    if (!bytes) return false;
    std::memcpy(&value, bytes->data(), sizeof value);
    return true;
  }

  const Elf64_Phdr* segment_of(std::uint64_t address, std::uint64_t bytes) const {
    for (const Elf64_Phdr& s : image.segments()) {
      if (s.p_type == PT_LOAD && inside(address, bytes, s.p_vaddr, s.p_memsz)) return &s;
    }
    return nullptr;
  }

  bool in_segment(std::uint64_t address, std::uint64_t bytes, std::uint32_t flags) const {
    const Elf64_Phdr* s = segment_of(address, bytes);
    return s != nullptr && (s->p_flags & flags) == flags;
  }

  bool callable(std::uint64_t address) const { return in_segment(address, 1, PF_X); }

  // As the loader does: the last of several entries with one tag.
  std::optional<std::uint64_t> entry(std::int64_t tag) const {
    for (auto e = dynamic.rbegin(); e != dynamic.rend(); ++e) {
      if (e->d_tag == tag) return e->d_un.d_val;
    }
    return std::nullopt;
  }

  // --- segments ---------------------------------------------------------------------------------

  Status check_segments() {
    if (image.segments().size() > most_segments) return bad("program header count");
    for (const Elf64_Phdr& s : image.segments()) {
      if (s.p_type == PT_NULL) continue;
      if (!inside(s.p_offset, s.p_filesz, 0, image.file().size())) {
        return bad("program segment overflow");
      }
      if (s.p_type != PT_LOAD) continue;
      // A mapping that is aligned to something odd would replace another.
      if (!power_of_two(s.p_align) || s.p_align < page_bytes || s.p_align > most_alignment ||
          (s.p_vaddr - s.p_offset) % s.p_align != 0) {
        return bad("program segment alignment");
      }
      if ((s.p_flags & PF_R) == 0) return bad("program segment: it cannot be read");
      if (end != 0 && page_of(s.p_vaddr) < page_after(end)) {
        return bad("program segment: it shares a page with another");  // L4
      }
      if (end == 0) begin = page_of(s.p_vaddr);
      end = s.p_vaddr + s.p_memsz;
    }
    end = page_after(end);
    return {};
  }

  Status check_special_segments() {
    constexpr std::uint32_t only_once[] = {PT_DYNAMIC, PT_PHDR, PT_TLS, PT_GNU_RELRO, PT_GNU_STACK};
    for (std::uint32_t type : only_once) {
      auto same = [&](const Elf64_Phdr& s) { return s.p_type == type; };
      if (std::count_if(image.segments().begin(), image.segments().end(), same) > 1) {
        return bad("program headers: two of a kind");
      }
    }
    for (const Elf64_Phdr& s : image.segments()) {
      switch (s.p_type) {
        case PT_DYNAMIC:
          // The loader adds the base to the addresses in it, unless it is marked read-only.
          if (!in_segment(s.p_vaddr, s.p_memsz, s.p_flags & PF_W)) return bad("dynamic segment");
          break;
        case PT_PHDR: {
          // From now on the process reads the program headers there: unwinders do.
          auto there = image.at_address(s.p_vaddr, image.segments().size() * sizeof(Elf64_Phdr));
          if (!there || there->data() != image.file().data() + image.header().e_phoff) {
            return bad("program header segment");
          }
          break;
        }
        case PT_TLS:
          if (s.p_memsz == 0) break;
          if (s.p_filesz > s.p_memsz || s.p_memsz > most_thread_local_bytes ||
              !power_of_two(s.p_align) || s.p_align > most_alignment ||
              (s.p_filesz != 0 && !image.at_address(s.p_vaddr, s.p_filesz))) {
            return bad("thread-local segment");
          }
          thread_local_segment = &s;
          break;
        case PT_GNU_RELRO:
          if (!relro_is_sound(s)) return bad("RELRO segment");
          break;
        case PT_GNU_EH_FRAME:
          if (s.p_memsz != 0 && !image.at_address(s.p_vaddr, s.p_memsz)) {
            return bad("exception frame segment");
          }
          break;
        default:
          break;
      }
    }
    return {};
  }

  // The pages in it become read-only: they must be the object's own, and not code.
  bool relro_is_sound(const Elf64_Phdr& relro) const {
    for (const Elf64_Phdr& s : image.segments()) {
      if (s.p_type != PT_LOAD || (s.p_flags & PF_W) == 0) continue;
      const std::uint64_t first = page_of(s.p_vaddr);
      if (inside(relro.p_vaddr, relro.p_memsz, first, page_after(s.p_vaddr + s.p_memsz) - first)) {
        return true;
      }
    }
    return false;
  }

  // Properties of the GNU kind are read at load time, by address; each record by the sizes in it.
  Status check_notes() {
    for (const Elf64_Phdr& s : image.segments()) {
      if ((s.p_type != PT_NOTE && s.p_type != PT_GNU_PROPERTY) || s.p_memsz == 0) continue;
      auto bytes = image.at_address(s.p_vaddr, s.p_memsz);
      if (!bytes) return bad("note segment");
      if (s.p_align != 8) continue;
      while (bytes->size() > sizeof(Elf64_Nhdr)) {
        Elf64_Nhdr note;
        std::memcpy(&note, bytes->data(), sizeof note);
        auto up = [](std::uint64_t size) { return (size + 7) & ~std::uint64_t{7}; };
        const std::uint64_t text = up(sizeof note + std::uint64_t{note.n_namesz});
        if (!inside(text, note.n_descsz, 0, bytes->size())) return bad("note segment overflow");
        const std::uint64_t next = text + up(note.n_descsz);
        *bytes = bytes->subspan(std::min<std::uint64_t>(next, bytes->size()));
      }
    }
    return {};
  }

  // Nobody needs the section headers to load a file, but they tell what the segments should be: a
  // damaged flag or offset shows here.
  Status check_sections() const {
    for (const Elf64_Shdr& section : image.sections()) {
      const bool in_file = section.sh_type != SHT_NOBITS;
      if ((section.sh_flags & SHF_ALLOC) == 0 || section.sh_size == 0) continue;
      if (!in_file && (section.sh_flags & SHF_TLS) != 0) continue;  // takes no addresses
      std::uint32_t flags = PF_R;
      if ((section.sh_flags & SHF_WRITE) != 0) flags |= PF_W;
      if ((section.sh_flags & SHF_EXECINSTR) != 0) flags |= PF_X;
      if (!in_segment(section.sh_addr, section.sh_size, flags)) {
        return bad("section: no segment is there for it");
      }
      if (!in_file) continue;
      auto there = image.at_address(section.sh_addr, section.sh_size);
      // Offsets are compared: one beyond the file is no pointer.
      const auto at = there ? static_cast<std::uint64_t>(there->data() - image.file().data()) : 0;
      if (!there || at != section.sh_offset) {
        return bad("section: its segment has something else there");
      }
      if ((section.sh_flags & SHF_TLS) != 0 &&
          (thread_local_segment == nullptr ||
           !inside(section.sh_addr, section.sh_size, thread_local_segment->p_vaddr,
                   thread_local_segment->p_filesz))) {
        return bad("section: no thread-local segment is there for it");
      }
    }
    return {};
  }

  // --- the dynamic table ------------------------------------------------------------------------

  void read_dynamic() {
    for (const Elf64_Phdr& s : image.segments()) {
      if (s.p_type != PT_DYNAMIC) continue;
      Elf64_Dyn e;
      for (std::uint64_t at = s.p_vaddr; get(at, e) && e.d_tag != DT_NULL; at += sizeof e) {
        dynamic.push_back(e);
      }
    }
  }

  // What the loader asserts, or takes for granted.
  Status check_dynamic() const {
    constexpr std::pair<std::int64_t, std::int64_t> needs[] = {{DT_RELA, DT_RELASZ},
                                                               {DT_RELA, DT_RELAENT},
                                                               {DT_PLTREL, DT_JMPREL},
                                                               {DT_PLTREL, DT_PLTRELSZ},
                                                               {DT_RELR, DT_RELRSZ},
                                                               {DT_RELR, DT_RELRENT},
                                                               {DT_JMPREL, DT_PLTREL},
                                                               {DT_INIT_ARRAY, DT_INIT_ARRAYSZ},
                                                               {DT_FINI_ARRAY, DT_FINI_ARRAYSZ},
                                                               {DT_VERNEED, DT_VERSYM},
                                                               {DT_VERDEF, DT_VERSYM}};
    for (auto [tag, other] : needs) {
      if (entry(tag) && !entry(other)) return bad("dynamic section: an entry is missing");
    }
    constexpr std::pair<std::int64_t, std::uint64_t> values[] = {{DT_RELAENT, sizeof(Elf64_Rela)},
                                                                 {DT_RELRENT, sizeof(Elf64_Relr)},
                                                                 {DT_SYMENT, sizeof(Elf64_Sym)},
                                                                 {DT_PLTREL, DT_RELA}};
    for (auto [tag, value] : values) {
      if (entry(tag).value_or(value) != value) return bad("dynamic section: an odd entry size");
    }
    if (!entry(DT_STRTAB) || !entry(DT_SYMTAB)) return bad("dynamic section: no symbol table");
    // No linker makes them for this machine; the loader would take them for relocations.
    if (entry(DT_REL) || entry(DT_RELSZ)) return bad("dynamic section: it has DT_REL");
    for (std::int64_t tag :
         {DT_RPATH, DT_RUNPATH, DT_AUXILIARY, DT_FILTER, DT_AUDIT, DT_DEPAUDIT}) {
      if (entry(tag).value_or(0) >= *entry(DT_STRSZ)) return bad("dynamic string table: overflow");
    }
    for (std::int64_t tag : {DT_INIT, DT_FINI}) {
      if (entry(tag) && !callable(*entry(tag))) return bad("constructor: it is no code");  // L3
    }
    return check_tables_against_sections();
  }

  // Where there are section headers they tell where each table is. One that the dynamic table puts
  // elsewhere, or leaves out, could be sound by itself and still bind every symbol to a wrong one.
  Status check_tables_against_sections() const {
    struct Table {
      std::uint32_t type;
      std::int64_t tag, size_tag;  // size_tag 0: the table knows its size
    };
    constexpr Table tables[] = {{SHT_DYNSYM, DT_SYMTAB, 0},
                                {SHT_STRTAB, DT_STRTAB, DT_STRSZ},
                                {SHT_GNU_HASH, DT_GNU_HASH, 0},
                                {SHT_HASH, DT_HASH, 0},
                                {SHT_GNU_versym, DT_VERSYM, 0},
                                {SHT_GNU_verneed, DT_VERNEED, 0},
                                {SHT_GNU_verdef, DT_VERDEF, 0},
                                {SHT_RELA, DT_RELA, DT_RELASZ},
                                {SHT_RELA, DT_JMPREL, DT_PLTRELSZ},
                                {SHT_RELR, DT_RELR, DT_RELRSZ},
                                {SHT_INIT_ARRAY, DT_INIT_ARRAY, DT_INIT_ARRAYSZ},
                                {SHT_FINI_ARRAY, DT_FINI_ARRAY, DT_FINI_ARRAYSZ}};
    for (const Elf64_Shdr& section : image.sections()) {
      if ((section.sh_flags & SHF_ALLOC) == 0 || section.sh_size == 0) continue;
      auto is_its = [&](const Table& t) { return t.type == section.sh_type; };
      auto agrees = [&](const Table& t) {
        return is_its(t) && entry(t.tag) == section.sh_addr &&
               (t.size_tag == 0 || entry(t.size_tag).value_or(0) >= section.sh_size);
      };
      if (std::any_of(std::begin(tables), std::end(tables), is_its) &&
          std::none_of(std::begin(tables), std::end(tables), agrees)) {
        return bad("dynamic section: a section's table is not in it");
      }
    }
    return {};
  }

  // --- symbols ----------------------------------------------------------------------------------

  // The table: image.cpp, gnu_hash_end().
  Status check_gnu_hash() const {
    auto at = entry(DT_GNU_HASH);
    if (!at) return {};
    std::uint32_t header[4];
    if (!get(*at, header)) return bad("symbol hash table");
    const std::uint64_t buckets = header[0], first = header[1], blooms = header[2];
    if (buckets == 0) return {};
    if (!power_of_two(blooms)) return bad("symbol hash table");
    const std::uint64_t buckets_at = *at + sizeof header + 8 * blooms;
    const std::uint64_t words_at = buckets_at + 4 * buckets;
    if (!image.at_address(*at, words_at - *at)) return bad("symbol hash table overflow");
    std::uint32_t last = 0;
    for (std::uint64_t i = 0; i < buckets; ++i) {
      std::uint32_t symbol = 0;
      if (!get(buckets_at + 4 * i, symbol) || (symbol != 0 && symbol < first)) {
        return bad("symbol hash table");
      }
      last = std::max(last, symbol);
    }
    if (last == 0) return {};
    // Whichever chain is followed ends where the last one does.
    for (std::uint64_t symbol = last;; ++symbol) {
      std::uint32_t word = 0;
      if (symbol >= image.dynamic_symbols().size() || !get(words_at + 4 * (symbol - first), word)) {
        return bad("symbol hash table: a chain does not end");
      }
      if (word & 1) return {};
    }
  }

  // Words: buckets, symbols; then a first symbol for each bucket, and for each symbol the next one.
  Status check_hash() const {
    auto at = entry(DT_HASH);
    if (!at) return {};
    std::uint32_t header[2];
    if (!get(*at, header)) return bad("symbol hash table");
    const std::uint64_t buckets = header[0], symbols = header[1];
    const std::uint64_t chains_at = *at + sizeof header + 4 * buckets;
    if (symbols > image.dynamic_symbols().size() ||
        !image.at_address(*at, chains_at + 4 * symbols - *at)) {
      return bad("symbol hash table overflow");
    }
    // Every symbol is in one chain at most, once: else a chain could go round for ever.
    std::vector<bool> seen(symbols);
    for (std::uint64_t i = 0; i < buckets; ++i) {
      std::uint32_t symbol = 0;
      if (!get(*at + sizeof header + 4 * i, symbol)) return bad("symbol hash table");
      while (symbol != STN_UNDEF) {
        if (symbol >= symbols || seen[symbol])
          return bad("symbol hash table: a chain does not end");
        seen[symbol] = true;
        if (!get(chains_at + 4 * std::uint64_t{symbol}, symbol)) return bad("symbol hash table");
      }
    }
    return {};
  }

  Elf64_Sym raw_symbol(std::uint64_t index) const {
    Elf64_Sym symbol{};
    (void)get(*entry(DT_SYMTAB) + index * sizeof symbol, symbol);
    return symbol;
  }

  Status check_symbols() const {
    for (std::uint64_t i = 1; i < image.dynamic_symbols().size(); ++i) {
      const Elf64_Sym symbol = raw_symbol(i);
      if (symbol.st_shndx == SHN_UNDEF || symbol.st_shndx == SHN_ABS) continue;
      const int type = ELF64_ST_TYPE(symbol.st_info);
      bool sound = symbol.st_value >= begin && symbol.st_value <= end;
      if (type == STT_TLS) {
        sound = thread_local_segment != nullptr && symbol.st_value <= thread_local_segment->p_memsz;
      } else if (type == STT_GNU_IFUNC || type == STT_FUNC) {
        sound = callable(symbol.st_value);  // L3
      }
      if (!sound) return fail(ENOEXEC, "Invalid ELF symbol value (symbol %" PRIu64 ")", i);
    }
    return {};
  }

  // Each symbol has a version's index; each index is made known by what is needed or defined.
  Status check_versions() const {
    auto versions = entry(DT_VERSYM);
    if (!versions) return {};
    std::uint64_t highest = 0;
    if (Status ok = check_needed_versions(highest); !ok) return ok;
    if (Status ok = check_defined_versions(highest); !ok) return ok;
    if (highest == 0) return bad("symbol versions: there are none");
    for (std::uint64_t i = 0; i < image.dynamic_symbols().size(); ++i) {
      std::uint16_t index = 0;
      if (!get(*versions + 2 * i, index) || (index & 0x7fff) > highest) {
        return bad("symbol version");
      }
    }
    return {};
  }

  bool is_needed(std::uint64_t name) const {
    auto text = image.at_address(*entry(DT_STRTAB), *entry(DT_STRSZ));
    if (!text || name >= text->size()) return false;
    // Ends before the table does (image.cpp).
    const std::string_view wanted(reinterpret_cast<const char*>(text->data()) + name);
    const auto& all = image.needed();
    return std::find(all.begin(), all.end(), wanted) != all.end();
  }

  // Lists go forwards only, so they end, at the latest where the file does.
  Status check_needed_versions(std::uint64_t& highest) const {
    auto at = entry(DT_VERNEED);
    if (!at) return {};
    // Lists may share their ends: their number is bounded, not only their length.
    std::uint64_t left = image.file().size() / sizeof(Elf64_Vernaux);
    for (;;) {
      Elf64_Verneed library;
      // The loader asserts that it has loaded the library.
      if (!get(*at, library) || !is_needed(library.vn_file)) return bad("needed versions");
      for (std::uint64_t aux_at = *at + library.vn_aux;;) {
        Elf64_Vernaux aux;
        if (left-- == 0 || !get(aux_at, aux) || aux.vna_name >= *entry(DT_STRSZ)) {
          return bad("needed versions");
        }
        highest = std::max<std::uint64_t>(highest, aux.vna_other & 0x7fff);
        if (aux.vna_next == 0) break;
        aux_at += aux.vna_next;
      }
      if (library.vn_next == 0) return {};
      *at += library.vn_next;
    }
  }

  Status check_defined_versions(std::uint64_t& highest) const {
    auto at = entry(DT_VERDEF);
    if (!at) return {};
    for (;;) {
      Elf64_Verdef version;
      Elf64_Verdaux aux;
      if (!get(*at, version) || !get(*at + version.vd_aux, aux) ||
          aux.vda_name >= *entry(DT_STRSZ)) {
        return bad("defined versions");
      }
      highest = std::max<std::uint64_t>(highest, version.vd_ndx & 0x7fff);
      if (version.vd_next == 0) return {};
      *at += version.vd_next;
    }
  }

  // --- relocations ------------------------------------------------------------------------------

  bool writable(std::uint64_t address, std::uint64_t bytes) const {
    const bool in_text = entry(DT_TEXTREL) || (image.flags() & DF_TEXTREL) != 0;
    if (!in_segment(address, bytes, in_text ? 0 : PF_W)) return false;
    for (const Elf64_Phdr& s : image.segments()) {
      if (s.p_type == PT_DYNAMIC && address < s.p_vaddr + s.p_memsz &&
          s.p_vaddr < address + bytes) {
        return false;
      }
    }
    return true;  // L2
  }

  // Bytes that a relocation of this type writes; 0: none that a shared object has.
  static std::uint64_t bytes_written(std::uint32_t type) {
    switch (type) {
      case R_X86_64_32:
      case R_X86_64_PC32:
      case R_X86_64_SIZE32:
        return 4;
      case R_X86_64_64:
      case R_X86_64_GLOB_DAT:
      case R_X86_64_JUMP_SLOT:
      case R_X86_64_RELATIVE:
      case R_X86_64_IRELATIVE:
      case R_X86_64_DTPMOD64:
      case R_X86_64_DTPOFF64:
      case R_X86_64_TPOFF64:
      case R_X86_64_SIZE64:
        return 8;
      case R_X86_64_TLSDESC:
        return 16;
      default:
        return 0;
    }
  }

  // A pointer may lie beside what it is made from, never far outside.
  bool near_image(std::uint64_t address) const {
    const auto slack = static_cast<std::int64_t>(end - begin);
    const auto at = static_cast<std::int64_t>(address);
    return at >= static_cast<std::int64_t>(begin) - slack &&
           at <= static_cast<std::int64_t>(end) + slack;
  }

  bool relocation_is_sound(const Elf64_Rela& r) const {
    const auto type = static_cast<std::uint32_t>(ELF64_R_TYPE(r.r_info));
    const std::uint64_t index = ELF64_R_SYM(r.r_info);
    const auto addend = static_cast<std::uint64_t>(r.r_addend);
    if (index >= std::max<std::uint64_t>(image.dynamic_symbols().size(), 1)) return false;
    if (type == R_X86_64_NONE) return true;
    const std::uint64_t bytes = bytes_written(type);
    if (bytes == 0 || !writable(r.r_offset, bytes)) return false;
    switch (type) {
      case R_X86_64_RELATIVE:
        return near_image(addend);
      case R_X86_64_IRELATIVE:
        return callable(addend);  // L3
      case R_X86_64_DTPMOD64:
      case R_X86_64_DTPOFF64:
      case R_X86_64_TPOFF64:
      case R_X86_64_TLSDESC: {
        const Elf64_Sym symbol = index ? raw_symbol(index) : Elf64_Sym{};
        if (index != 0 && ELF64_ST_TYPE(symbol.st_info) != STT_TLS) return false;
        const bool own = index == 0 || symbol.st_shndx != SHN_UNDEF;
        return !own || thread_local_segment != nullptr;
      }
      default:
        return true;
    }
  }

  Status check_relocations() const {
    // The first ones are applied without a look at their type.
    std::uint64_t relative = entry(DT_RELACOUNT).value_or(0);
    if (relative > entry(DT_RELASZ).value_or(0) / sizeof(Elf64_Rela)) {
      return bad("relocation table: more relative ones than there are");
    }
    bool sound = true;
    image.for_each_relocation([&](const Elf64_Rela& r) {
      sound = sound && relocation_is_sound(r);
      if (relative == 0) return;
      --relative;
      sound = sound && ELF64_R_TYPE(r.r_info) == R_X86_64_RELATIVE;
    });
    if (sound) {
      sound = for_each_relr([&](std::uint64_t address) { return writable(address, 8); });
    }
    if (!sound) return bad("relocation");
    return {};
  }

  // An even entry is an address; an odd one a bitmap of the 63 words behind the last.
  template <class F>
  bool for_each_relr(F&& f) const {
    auto at = entry(DT_RELR);
    if (!at) return true;
    std::uint64_t next = 0;
    for (std::uint64_t i = 0; i < *entry(DT_RELRSZ) / sizeof(Elf64_Relr); ++i) {
      Elf64_Relr word = 0;
      if (!get(*at + i * sizeof word, word)) return false;
      if ((word & 1) == 0) {
        if (!f(word)) return false;
        next = word + 8;
        continue;
      }
      for (int bit = 0; bit < 63; ++bit) {
        if ((word >> (bit + 1) & 1) != 0 && !f(next + 8 * bit)) return false;
      }
      next += std::uint64_t{63} * 8;
    }
    return true;
  }

  // --- what is called ---------------------------------------------------------------------------

  // Is what the relocation stores the address of code? Of another object's: that one's affair.
  bool stores_code(const Elf64_Rela& r) const {
    const auto addend = static_cast<std::uint64_t>(r.r_addend);
    switch (ELF64_R_TYPE(r.r_info)) {
      case R_X86_64_RELATIVE:
        return callable(addend);
      case R_X86_64_64:
      case R_X86_64_GLOB_DAT: {
        const Elf64_Sym symbol = raw_symbol(ELF64_R_SYM(r.r_info));
        if (symbol.st_shndx == SHN_UNDEF) return ELF64_ST_BIND(symbol.st_info) != STB_WEAK;
        return callable(symbol.st_value + addend);
      }
      default:
        return false;
    }
  }

  Status check_constructors() const {
    constexpr std::pair<std::int64_t, std::int64_t> arrays[] = {{DT_INIT_ARRAY, DT_INIT_ARRAYSZ},
                                                                {DT_FINI_ARRAY, DT_FINI_ARRAYSZ}};
    for (auto [tag, size_tag] : arrays) {
      const std::uint64_t size = entry(size_tag).value_or(0) & ~std::uint64_t{7};
      if (!entry(tag) || size == 0) continue;
      const std::uint64_t at = *entry(tag);
      if (!image.at_address(at, size)) return bad("constructor table overflow");
      // Every slot gets the address of code from one relocation, and nothing else gets written there.
      std::vector<bool> known(size / 8);
      bool sound = true;
      auto set = [&](std::uint64_t address, std::uint64_t bytes, bool is_code) {
        if (address >= at + size || address + bytes <= at) return;
        const bool is_slot = address >= at && (address - at) % 8 == 0 && bytes == 8;
        sound = sound && is_slot && is_code && !known[(address - at) / 8];
        if (sound) known[(address - at) / 8] = true;
      };
      image.for_each_relocation([&](const Elf64_Rela& r) {
        set(r.r_offset, bytes_written(static_cast<std::uint32_t>(ELF64_R_TYPE(r.r_info))),
            stores_code(r));
      });
      for_each_relr([&](std::uint64_t address) {
        std::uint64_t value = 0;
        set(address, 8, get(address, value) && callable(value));
        return true;
      });
      if (!sound || std::find(known.begin(), known.end(), false) != known.end()) {
        return bad("constructor table: an entry is no code");  // L3
      }
    }
    return {};
  }
};

}  // namespace

Status check_loadable(const Image& image) { return Check{image}.run(); }

}  // namespace molt::elf
