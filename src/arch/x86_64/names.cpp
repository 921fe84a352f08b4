#include "arch/x86_64/names.hpp"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <cstring>

#include "base/fd.hpp"
#include "base/memory.hpp"

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

// What the debugger is shown: an ELF file without its code, which lies elsewhere.
struct NamedCode {
  jit_code_entry entry;
  CodeRange range;
  struct File {
    Elf64_Ehdr header;
    Elf64_Shdr section[sections];
    Elf64_Sym symbol[2];
    Frames frame;
    char strings[1 + most_name];
    char section_names[sizeof names_of_sections];
  } file;
};

namespace {

bool perf_wanted = false;

Status append_to_perf_map(const NamedCode& code) {
  char path[64], line[most_name + 64];
  std::snprintf(path, sizeof path, "/tmp/perf-%d.map", getpid());
  // Another user's file of that name, or a link, is not ours to write to.
  Fd fd(open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (!fd) return fail_errno(errno, "cannot open %s", path);
  int size = std::snprintf(line, sizeof line, "%zx %zx %s\n", code.range.begin, code.range.size(),
                           code.file.strings + 1);
  if (write(fd.get(), line, static_cast<std::size_t>(size)) != size) {
    return fail_errno(errno, "cannot write %s", path);
  }
  return {};
}

void fill(NamedCode::File& file, CodeRange range, const char* name) {
  Elf64_Ehdr& header = file.header;
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_ident[EI_VERSION] = EV_CURRENT;
  header.e_type = ET_EXEC;  // with addresses that are final
  header.e_machine = EM_X86_64;
  header.e_version = EV_CURRENT;
  header.e_ehsize = sizeof(Elf64_Ehdr);
  header.e_shentsize = sizeof(Elf64_Shdr);
  header.e_shoff = offsetof(NamedCode::File, section);
  header.e_shnum = sections;
  header.e_shstrndx = section_names;

  std::uint32_t name_at = 1;
  auto section = [&](Section which, std::uint32_t type, std::uint64_t flags, std::size_t offset,
                     std::size_t size) -> Elf64_Shdr& {
    Elf64_Shdr& one = file.section[which];
    one.sh_name = name_at;
    name_at += static_cast<std::uint32_t>(std::strlen(names_of_sections + name_at)) + 1;
    one.sh_type = type;
    one.sh_flags = flags;
    one.sh_offset = offset;
    one.sh_size = size;
    one.sh_addralign = 1;
    return one;
  };
  section(text, SHT_NOBITS, SHF_ALLOC | SHF_EXECINSTR, 0, range.size()).sh_addr = range.begin;
  section(frames, SHT_PROGBITS, 0, offsetof(NamedCode::File, frame), sizeof(Frames) - 4);
  Elf64_Shdr& table =
      section(symbols, SHT_SYMTAB, 0, offsetof(NamedCode::File, symbol), sizeof file.symbol);
  table.sh_link = strings;
  table.sh_info = 1;  // the first that is not local
  table.sh_entsize = sizeof(Elf64_Sym);
  section(strings, SHT_STRTAB, 0, offsetof(NamedCode::File, strings), sizeof file.strings);
  section(section_names, SHT_STRTAB, 0, offsetof(NamedCode::File, section_names),
          sizeof file.section_names);
  std::memcpy(file.section_names, names_of_sections, sizeof names_of_sections);

  Elf64_Sym& symbol = file.symbol[1];
  symbol.st_name = 1;
  symbol.st_info = ELF64_ST_INFO(STB_GLOBAL, STT_FUNC);
  symbol.st_shndx = text;
  symbol.st_value = range.begin;
  symbol.st_size = range.size();
  std::snprintf(file.strings + 1, most_name, "%s", name);

  std::memcpy(file.frame.common, cie, sizeof cie);
  file.frame.length = 4 + 8 + 8;
  file.frame.common_at = sizeof cie + 4;
  file.frame.begin = range.begin;
  file.frame.size = range.size();
}

}  // namespace

NamedCode* name_code(CodeRange range, const char* name) {
  if (!memory_available()) return nullptr;
  auto* code = new NamedCode{};
  code->range = range;
  fill(code->file, range, name);

  jit_descriptor& all = __jit_debug_descriptor;
  code->entry = {all.first, nullptr, reinterpret_cast<const char*>(&code->file), sizeof code->file};
  if (all.first != nullptr) all.first->previous = &code->entry;
  all.first = all.relevant = &code->entry;
  all.action = jit_registered;
  __jit_debug_register_code();
  if (perf_wanted) (void)append_to_perf_map(*code);
  return code;
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
