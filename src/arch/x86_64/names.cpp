#include "arch/x86_64/names.hpp"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <cstring>
#include <new>
#include <utility>

#include "base/memory.hpp"
#include "base/own_fd.hpp"

// The debugger's interface: it finds these two by name, stops in the first, and reads the second.
// Hidden, so that a host with a just-in-time compiler of its own keeps its own.
extern "C" {
struct jit_code_entry {
  jit_code_entry* next;
  jit_code_entry* previous;
  const char* file;
  std::uint64_t size;
};
struct jit_descriptor {
  std::uint32_t version;
  std::uint32_t action;
  jit_code_entry* relevant;
  jit_code_entry* first;
};
enum : std::uint32_t { jit_nothing, jit_registered, jit_unregistered };

[[gnu::visibility("hidden"), gnu::used]] jit_descriptor __jit_debug_descriptor = {1, jit_nothing,
                                                                                  nullptr, nullptr};
[[gnu::visibility("hidden"), gnu::noinline, gnu::used]] void __jit_debug_register_code() {
  asm volatile("" ::: "memory");
}
}

namespace molt::arch {
namespace {

constexpr std::size_t most_name = 160;

// Common information: code factor 1, data factor -8, return address in column 16; at every place of
// a trampoline (but behind its one push) the frame is as it is at a function's first instruction.
constexpr unsigned char cie[] = {
    0x14,      0, 0, 0,    0,  0, 0, 0,  // length, id
    1,         0, 1, 0x78, 16,           // version, no augmentation, factors, column
    0x0c,      7, 8,                     // def_cfa rsp+8
    0x80 | 16, 1,                        // offset rip at cfa-8
    0,         0, 0, 0,    0,  0,        // nops
};
static_assert(sizeof cie == 24);

struct Frames {
  unsigned char common[sizeof cie];
  std::uint32_t length;
  std::uint32_t common_at;  // backwards from here to the CIE
  std::uint64_t begin, size;
  std::uint32_t end;  // of the section
  std::uint32_t padding;
};

enum Section { none, text, frames, symbols, strings, section_names, sections };
constexpr char names_of_sections[] = "\0.text\0.eh_frame\0.symtab\0.strtab\0.shstrtab";

}  // namespace

struct NamedCode {
  jit_code_entry entry;
  Bytes file;  // what the debugger is shown: an ELF file without its code, which lies elsewhere
};

namespace {

// A file of one function.
struct File {
  Elf64_Ehdr header;
  Elf64_Shdr section[sections];
  Elf64_Sym symbol[2];
  Frames frame;
  char strings[1 + most_name];
  char section_names[sizeof names_of_sections];
};

bool perf_wanted = false;

const Elf64_Shdr& section_of(const std::byte* file, Section which) {
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(file);
  return reinterpret_cast<const Elf64_Shdr*>(file + header->e_shoff)[which];
}

Status append_to_perf_map(const NamedCode& code) {
  char path[64];
  std::snprintf(path, sizeof path, "/tmp/perf-%d.map", getpid());
  // Another user's file of that name, or a link, is not ours to write to.
  const OwnFd fd = own_open(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, 0644);
  if (!fd) return fail_errno(errno, "cannot open %s", path);
  const std::byte* file = code.file.data();
  const Elf64_Shdr& table = section_of(file, symbols);
  const auto* all = reinterpret_cast<const Elf64_Sym*>(file + table.sh_offset);
  const auto* names = reinterpret_cast<const char*>(file + section_of(file, strings).sh_offset);
  for (std::size_t i = 1; i < table.sh_size / sizeof(Elf64_Sym); ++i) {
    char line[most_name + 64];
    const int size = std::snprintf(line, sizeof line, "%zx %zx %.*s\n", all[i].st_value,
                                   all[i].st_size, int{most_name}, names + all[i].st_name);
    if (!fd.is_there() || write(fd.get(), line, static_cast<std::size_t>(size)) != size) {
      return fail_errno(errno, "cannot write %s", path);
    }
  }
  return {};
}

void begin(Elf64_Ehdr& header, std::size_t sections_at) {
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_ident[EI_VERSION] = EV_CURRENT;
  header.e_type = ET_EXEC;  // with addresses that are final
  header.e_machine = EM_X86_64;
  header.e_version = EV_CURRENT;
  header.e_ehsize = sizeof(Elf64_Ehdr);
  header.e_shentsize = sizeof(Elf64_Shdr);
  header.e_shoff = sections_at;
  header.e_shnum = sections;
  header.e_shstrndx = section_names;
}

// Where each part of the file is.
struct Layout {
  CodeRange code;
  std::uint64_t frames_address;  // 0: they are of this file alone
  std::size_t frames_at, frames_size, symbols_at, symbols_size, strings_at, strings_size, names_at;
};
void describe(Elf64_Shdr* section, const Layout& at) {
  std::uint32_t name_at = 1;
  auto one = [&](Section which, std::uint32_t type, std::uint64_t flags, std::size_t offset,
                 std::size_t size) -> Elf64_Shdr& {
    Elf64_Shdr& made = section[which];
    made.sh_name = name_at;
    name_at += static_cast<std::uint32_t>(std::strlen(names_of_sections + name_at)) + 1;
    made.sh_type = type;
    made.sh_flags = flags;
    made.sh_offset = offset;
    made.sh_size = size;
    made.sh_addralign = 1;
    return made;
  };
  one(text, SHT_NOBITS, SHF_ALLOC | SHF_EXECINSTR, 0, at.code.size()).sh_addr = at.code.begin;
  one(frames, SHT_PROGBITS, at.frames_address != 0 ? SHF_ALLOC : 0, at.frames_at, at.frames_size)
      .sh_addr = at.frames_address;
  Elf64_Shdr& table = one(symbols, SHT_SYMTAB, 0, at.symbols_at, at.symbols_size);
  table.sh_link = strings;
  table.sh_info = 1;  // the first that is not local
  table.sh_entsize = sizeof(Elf64_Sym);
  one(strings, SHT_STRTAB, 0, at.strings_at, at.strings_size);
  one(section_names, SHT_STRTAB, 0, at.names_at, sizeof names_of_sections);
}

Elf64_Sym symbol_of(CodeRange range, std::uint32_t name) {
  Elf64_Sym symbol{};
  symbol.st_name = name;
  symbol.st_info = ELF64_ST_INFO(STB_GLOBAL, STT_FUNC);
  symbol.st_shndx = text;
  symbol.st_value = range.begin;
  symbol.st_size = range.size();
  return symbol;
}

void fill(File& file, CodeRange range, const char* name) {
  begin(file.header, offsetof(File, section));
  describe(file.section, {range, 0, offsetof(File, frame), sizeof(Frames) - 4,
                          offsetof(File, symbol), sizeof file.symbol, offsetof(File, strings),
                          sizeof file.strings, offsetof(File, section_names)});
  std::memcpy(file.section_names, names_of_sections, sizeof names_of_sections);
  file.symbol[1] = symbol_of(range, 1);
  std::snprintf(file.strings + 1, most_name, "%s", name);

  std::memcpy(file.frame.common, cie, sizeof cie);
  file.frame.length = 4 + 8 + 8;
  file.frame.common_at = sizeof cie + 4;
  file.frame.begin = range.begin;
  file.frame.size = range.size();
}

// Tells the debugger.
NamedCode* announce(Bytes file) {
  auto* code = new NamedCode{};
  code->file = std::move(file);
  jit_descriptor& all = __jit_debug_descriptor;
  code->entry = {all.first, nullptr, reinterpret_cast<const char*>(code->file.data()),
                 code->file.size()};
  if (all.first != nullptr) all.first->previous = &code->entry;
  all.first = all.relevant = &code->entry;
  all.action = jit_registered;
  __jit_debug_register_code();
  if (perf_wanted) (void)append_to_perf_map(*code);
  return code;
}

}  // namespace

NamedCode* name_code(CodeRange range, const char* name) {
  Bytes file;
  if (!memory_available() || !file.try_resize(sizeof(File))) return nullptr;
  fill(*new (file.data()) File{}, range, name);
  return announce(std::move(file));
}

NamedCode* name_functions(CodeRange whole, std::span<const CodeName> functions,
                          CodeRange frames_in) {
  std::size_t strings_size = 1;
  for (const CodeName& function : functions) strings_size += function.name.size() + 1;
  Layout at{};
  at.code = whole;
  at.frames_address = frames_in.begin;
  at.symbols_at = sizeof(Elf64_Ehdr) + sections * sizeof(Elf64_Shdr);
  at.symbols_size = (functions.size() + 1) * sizeof(Elf64_Sym);
  at.frames_at = at.symbols_at + at.symbols_size;
  at.frames_size = frames_in.size();
  at.strings_at = at.frames_at + at.frames_size;
  at.strings_size = strings_size;
  at.names_at = at.strings_at + at.strings_size;
  Bytes file;
  if (!memory_available() || !file.try_resize(at.names_at + sizeof names_of_sections))
    return nullptr;
  std::memset(file.data(), 0, file.size());
  begin(*reinterpret_cast<Elf64_Ehdr*>(file.data()), sizeof(Elf64_Ehdr));
  describe(reinterpret_cast<Elf64_Shdr*>(file.data() + sizeof(Elf64_Ehdr)), at);
  auto* symbol = reinterpret_cast<Elf64_Sym*>(file.data() + at.symbols_at);
  std::uint32_t name_at = 1;
  for (const CodeName& function : functions) {
    *++symbol = symbol_of(function.range, name_at);
    std::memcpy(file.data() + at.strings_at + name_at, function.name.c_str(),
                function.name.size() + 1);
    name_at += static_cast<std::uint32_t>(function.name.size()) + 1;
  }
  if (frames_in.size() != 0) {
    std::memcpy(file.data() + at.frames_at, reinterpret_cast<const void*>(frames_in.begin),
                frames_in.size());
  }
  std::memcpy(file.data() + at.names_at, names_of_sections, sizeof names_of_sections);
  return announce(std::move(file));
}

CodeRange memory_of(const NamedCode* code) {
  if (code == nullptr) return {};
  const auto begin = reinterpret_cast<CodeAddress>(code->file.data());
  return {begin, begin + code->file.size()};
}

void forget_code(NamedCode* code) {
  if (code == nullptr) return;
  jit_descriptor& all = __jit_debug_descriptor;
  jit_code_entry& entry = code->entry;
  (entry.previous != nullptr ? entry.previous->next : all.first) = entry.next;
  if (entry.next != nullptr) entry.next->previous = entry.previous;
  all.relevant = &entry;
  all.action = jit_unregistered;
  __jit_debug_register_code();
  all.relevant = nullptr;
  // A search for addresses of what it named shall find none here.
  std::memset(code->file.data(), 0, code->file.size());
  asm volatile("" : : "r"(code->file.data()) : "memory");
  delete code;
}

Status name_code_for_perf() {
  perf_wanted = true;
  for (jit_code_entry* entry = __jit_debug_descriptor.first; entry != nullptr;
       entry = entry->next) {
    auto* code = reinterpret_cast<NamedCode*>(entry);  // its first member
    if (auto written = append_to_perf_map(*code); !written) return written;
  }
  return {};
}

}  // namespace molt::arch
