#include "elf/input.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>

namespace molt::elf {

namespace {

// Linked files have a few dozen.
constexpr std::uint64_t most_sections = 1 << 16;
// Notes are small; what calls itself a note and is not is left alone.
constexpr std::uint64_t most_note_bytes = 1 << 16;

}  // namespace

Result<Input> Input::of(int fd) {
  struct stat info;
  if (fstat(fd, &info) != 0) return fail_errno(errno, "cannot read the file");
  if (!S_ISREG(info.st_mode)) return fail(EINVAL, "it is not a regular file");
  Input input;
  input.fd_ = fd;
  input.size_ = static_cast<std::uint64_t>(info.st_size);
  return input;
}

Result<Bytes> Input::read(std::uint64_t offset, std::uint64_t bytes) const {
  if (!within(offset, bytes, size_)) return fail(ENOEXEC, "the file is cut off");
  Bytes content;
  if (!content.try_resize(bytes)) {
    return fail(ENOMEM, "no memory for %" PRIu64 " bytes of symbols", bytes);
  }
  if (fd_ < 0) {
    if (bytes != 0) std::memcpy(content.data(), bytes_.data() + offset, bytes);
    return content;
  }
  for (std::uint64_t done = 0; done < bytes;) {
    const ssize_t got =
        pread(fd_, content.data() + done, bytes - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(errno, "cannot read the file");
    if (got == 0) return fail(EIO, "the file became shorter while it was read");
    done += static_cast<std::uint64_t>(got);
  }
  return content;
}

Result<Sections> Sections::read(const Input& input) {
  auto start = input.read(0, sizeof(Elf64_Ehdr));
  if (!start)
    return start.error().code == ENOEXEC ? fail(ENOEXEC, "it is not an ELF file") : pass(start);
  const Elf64_Ehdr header = *elf::read<Elf64_Ehdr>(*start, 0);
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) {
    return fail(ENOEXEC, "it is not an ELF file");
  }
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB ||
      header.e_machine != EM_X86_64) {
    return fail(ENOEXEC, "it is not an x86-64 ELF file");
  }

  Sections sections;
  if (header.e_phentsize == sizeof(Elf64_Phdr)) {
    auto segments = input.read(header.e_phoff, std::uint64_t{header.e_phnum} * sizeof(Elf64_Phdr));
    if (segments) sections.segments_ = std::move(*segments);
  }
  for (std::uint64_t at = 0; auto segment = elf::read<Elf64_Phdr>(sections.segments_, at);
       at += sizeof(Elf64_Phdr)) {
    if (segment->p_type != PT_LOAD) continue;
    sections.base_ = std::min(sections.base_.value_or(UINT64_MAX), segment->p_vaddr);
  }

  if (header.e_shoff == 0) return sections;
  if (header.e_shentsize != sizeof(Elf64_Shdr)) return fail(ENOEXEC, "its sections are damaged");
  std::uint64_t count = header.e_shnum;
  std::uint32_t names = header.e_shstrndx;
  if (count == 0 || names == SHN_XINDEX) {
    // What does not fit into the header is in the first section.
    auto first = input.read(header.e_shoff, sizeof(Elf64_Shdr));
    if (!first) return pass(first);
    const Elf64_Shdr section = *elf::read<Elf64_Shdr>(*first, 0);
    if (count == 0) count = section.sh_size;
    if (names == SHN_XINDEX) names = section.sh_link;
  }
  if (count > most_sections) return fail(ENOEXEC, "it has too many sections");
  auto headers = input.read(header.e_shoff, count * sizeof(Elf64_Shdr));
  if (!headers) return pass(headers);
  sections.headers_ = std::move(*headers);
  if (names < sections.size()) {
    auto strings = sections.content(input, sections.header(names));
    if (strings) sections.names_ = std::move(*strings);
  }
  return sections;
}

Elf64_Shdr Sections::header(std::size_t index) const {
  return elf::read<Elf64_Shdr>(headers_, index * sizeof(Elf64_Shdr)).value_or(Elf64_Shdr{});
}

std::string_view Sections::name(std::size_t index) const {
  return text_at(names_, header(index).sh_name).value_or(std::string_view{});
}

std::optional<Elf64_Shdr> Sections::of_type(std::uint32_t type) const {
  for (std::size_t i = 1; i < size(); ++i) {
    if (header(i).sh_type == type) return header(i);
  }
  return std::nullopt;
}

std::optional<Elf64_Shdr> Sections::named(std::string_view wanted) const {
  for (std::size_t i = 1; i < size(); ++i) {
    if (name(i) == wanted) return header(i);
  }
  return std::nullopt;
}

Result<Bytes> Sections::content(const Input& input, const Elf64_Shdr& section) const {
  if (section.sh_type == SHT_NOBITS) return fail(ENODATA, "the section is in another file");
  if ((section.sh_flags & SHF_COMPRESSED) != 0) return fail(ENODATA, "the section is compressed");
  return input.read(section.sh_offset, section.sh_size);
}

std::string Sections::build_id(const Input& input) const {
  std::string found;
  auto look = [&](const Result<Bytes>& notes, std::uint64_t alignment) {
    if (!notes) return;
    for_each_note(*notes, alignment == 8 ? 8 : 4,
                  [&](std::string_view owner, std::uint32_t type, View text) {
                    using namespace std::string_view_literals;
                    if (owner == "GNU\0"sv && type == NT_GNU_BUILD_ID && found.empty()) {
                      found = hexadecimal(text);
                    }
                  });
  };
  for (std::size_t i = 1; i < size() && found.empty(); ++i) {
    const Elf64_Shdr section = header(i);
    if (section.sh_type != SHT_NOTE || section.sh_size > most_note_bytes) continue;
    look(content(input, section), section.sh_addralign);
  }
  for (std::uint64_t at = 0; auto segment = elf::read<Elf64_Phdr>(segments_, at);
       at += sizeof(Elf64_Phdr)) {
    if (!found.empty()) break;
    if (segment->p_type != PT_NOTE || segment->p_filesz > most_note_bytes) continue;
    look(input.read(segment->p_offset, segment->p_filesz), segment->p_align);
  }
  return found;
}

}  // namespace molt::elf
