#include "elf/symbol_files.hpp"

#include "elf/image.hpp"
#include "elf/unpack_xz.hpp"

#include <fcntl.h>

#include <cerrno>

namespace molt::elf {

namespace {

// How much the addresses of a file differ from those of the object whose build-id it has.
std::uint64_t shift_to(const SymbolOwner& owner, const Sections& sections) {
  return owner.base && sections.base() ? *owner.base - *sections.base() : 0;
}

// Every linked file has static functions, of the C library's start files at least. Without any, they
// were taken out, and who knows what else.
bool has_static_symbols(View table) {
  for (std::uint64_t at = 0; auto symbol = read<Elf64_Sym>(table, at); at += sizeof(Elf64_Sym)) {
    if (ELF64_ST_BIND(symbol->st_info) == STB_LOCAL && ELF64_ST_TYPE(symbol->st_info) == STT_FUNC &&
        symbol->st_shndx != SHN_UNDEF) {
      return true;
    }
  }
  return false;
}

enum class Wanted { any, complete };

// The table of that type with its strings. False: it is not there, damaged, or not as wanted.
Result<bool> add_table(SymbolsBuilder& builder, const Input& file, const Sections& sections,
                       std::uint32_t type, SymbolSource source, std::uint64_t shift,
                       Wanted wanted = Wanted::any) {
  const auto section = sections.of_type(type);
  if (!section || section->sh_link >= sections.size()) return false;
  auto table = sections.content(file, *section);
  auto strings = sections.content(file, sections.header(section->sh_link));
  if (!table || !strings) {
    const Error& error = !table ? table.error() : strings.error();
    if (error.code == ENOMEM) return tl::unexpected<Error>(error);
    return false;
  }
  if (wanted == Wanted::complete && !has_static_symbols(*table)) return false;
  Bytes versym;
  Bytes verdef;
  auto fill = [&](std::uint32_t of_type, Bytes& to) {
    const auto found = sections.of_type(of_type);
    if (!found || type != SHT_DYNSYM) return;
    if (auto content = sections.content(file, *found)) to = std::move(*content);
  };
  fill(SHT_GNU_versym, versym);
  fill(SHT_GNU_verdef, verdef);
  if (auto done = builder.use_sections(&sections, shift); !done) return pass(done);
  const std::size_t before = builder.size();
  auto added = builder.add(*table, *strings, source, shift, {versym, verdef});
  if (!added) return pass(added);
  if (builder.size() == before) return false;
  if (wanted == Wanted::complete) builder.set_complete();
  return true;
}

Result<bool> add_debugdata(SymbolsBuilder& builder, const Input& file, const Sections& sections,
                           const SymbolOwner& owner) {
  const auto section = sections.named(".gnu_debugdata");
  if (!section) return false;
  auto packed = sections.content(file, *section);
  auto unpacked = packed ? unpack_xz(*packed) : std::move(packed);
  if (!unpacked) {
    if (unpacked.error().code == ENOMEM) return pass(unpacked);
    builder.note(unpacked.error().detail);
    return false;
  }
  const Input inner{View(*unpacked)};
  auto inner_sections = Sections::read(inner);
  if (!inner_sections) {
    if (inner_sections.error().code == ENOMEM) return pass(inner_sections);
    builder.note(".gnu_debugdata is damaged");
    return false;
  }
  return add_table(builder, inner, *inner_sections, SHT_SYMTAB, SymbolSource::gnu_debugdata,
                   shift_to(owner, *inner_sections));
}

// A debug file at this path, if it is one and belongs to the object. What is there but of no use is
// noted.
Result<bool> try_debug_file(SymbolsBuilder& builder, const std::string& path,
                            const SymbolOwner& owner) {
  const Fd fd = open_to_read(path.c_str());
  if (!fd) return false;
  auto file = Input::of(fd.get());
  if (!file) return false;
  auto sections = Sections::read(*file);
  if (!sections) {
    if (sections.error().code == ENOMEM) return pass(sections);
    builder.note(path + ": " + sections.error().detail);
    return false;
  }
  // S1
  if (sections->build_id(*file) != owner.build_id) {
    builder.note(path + " is of another build");
    return false;
  }
  auto added = add_table(builder, *file, *sections, SHT_SYMTAB, SymbolSource::debug_file,
                         shift_to(owner, *sections), Wanted::complete);
  if (added && !*added) builder.note(path + " has no static symbols");
  return added;
}

std::string folder_of(std::string_view path) {
  const std::size_t slash = path.rfind('/');
  return slash == path.npos ? "" : std::string(path.substr(0, slash));
}

// What .gnu_debuglink says: a file name, and a checksum that nobody needs where there is a build-id.
std::string debug_link(const Input& file, const Sections& sections) {
  const auto section = sections.named(".gnu_debuglink");
  if (!section || section->sh_size > 4096) return "";
  auto content = sections.content(file, *section);
  if (!content) return "";
  const auto name = text_at(*content, 0);
  if (!name || name->find('/') != name->npos) return "";
  return std::string(*name);
}

}  // namespace

const char* given_debug_directory() { return secure_getenv("MOLT_DEBUG_DIRECTORY"); }

Fd open_to_read(const char* path) {
  return Fd(::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
}

Result<bool> add_debug_file(SymbolsBuilder& builder, std::string_view link,
                            const SymbolOwner& owner, const SymbolOptions& options) {
  const char* directories[] = {options.extra_debug_directory, options.debug_directory};
  if (owner.build_id.size() < 4) {
    builder.note("without a build-id no debug file can be trusted");
    return false;
  }
  const std::string id(owner.build_id);
  std::vector<std::string> paths;
  std::string looked_for;
  for (const char* directory : directories) {
    if (directory == nullptr || *directory == '\0') continue;
    paths.push_back(std::string(directory) + "/.build-id/" + id.substr(0, 2) + "/" + id.substr(2) +
                    ".debug");
    looked_for += (looked_for.empty() ? "no debug file " : " or ") + paths.back();
  }
  if (!link.empty() && !owner.path.empty()) {
    const std::string folder = folder_of(owner.path);
    const std::string name(link);
    paths.push_back(folder + "/" + name);
    paths.push_back(folder + "/.debug/" + name);
    for (const char* directory : directories) {
      if (directory == nullptr || *directory == '\0') continue;
      paths.push_back(std::string(directory) + folder + "/" + name);
    }
  }
  for (const std::string& path : paths) {
    auto added = try_debug_file(builder, path, owner);
    if (!added || *added) return added;
  }
  builder.note(looked_for.empty() ? "no folder of debug files" : looked_for);
  return false;
}

Result<bool> add_static_symbols(SymbolsBuilder& builder, const Input& file,
                                const Sections& sections, const SymbolOwner& owner,
                                const SymbolOptions& options) {
  const std::uint64_t shift = shift_to(owner, sections);
  auto complete =
      add_table(builder, file, sections, SHT_SYMTAB, SymbolSource::symtab, shift, Wanted::complete);
  if (!complete || *complete) return complete;
  const bool partial = sections.of_type(SHT_SYMTAB).has_value();
  builder.note(partial ? "stripped of static symbols" : "stripped");
  complete = add_debug_file(builder, debug_link(file, sections), owner, options);
  if (!complete || *complete) return complete;
  auto added = partial ? add_table(builder, file, sections, SHT_SYMTAB, SymbolSource::symtab, shift)
                       : add_debugdata(builder, file, sections, owner);
  if (!added) return added;
  return false;
}

namespace {

// .dynsym of a file: by section headers, or as the loader finds it where there are none.
Status add_dynamic_symbols(SymbolsBuilder& builder, const Input& file, const Sections& sections) {
  auto added = add_table(builder, file, sections, SHT_DYNSYM, SymbolSource::dynsym, 0);
  if (!added) return pass(added);
  if (*added || sections.size() != 0) return {};
  auto content = file.read(0, file.size());
  if (!content) return pass(content);
  auto image = Image::parse(*content, Purpose::examine);
  if (!image) return {};
  if (auto done = builder.use_sections(nullptr, 0); !done) return done;
  const SymbolTable& table = image->dynamic_symbols();
  return builder.add(table.entries(), table.strings(), SymbolSource::dynsym, 0);
}

Result<Symbols> read_symbols_of(const Input& file, std::string_view name, const SymbolOwner* outer,
                                const SymbolOptions& options) {
  auto sections = Sections::read(file);
  if (!sections) return pass(sections);
  SymbolsBuilder builder(name);
  const std::string build_id = sections->build_id(file);
  SymbolOwner owner{{}, {}, sections->base()};
  if (outer != nullptr) {
    owner.path = outer->path;
    owner.build_id = build_id;
  }
  auto complete = add_static_symbols(builder, file, *sections, owner, options);
  if (!complete) return pass(complete);
  if (!*complete) {
    if (auto done = add_dynamic_symbols(builder, file, *sections); !done) return pass(done);
  }
  return builder.finish(0);
}

}  // namespace

Result<Symbols> read_symbols(int fd, std::string_view path, const SymbolOptions& options) {
  auto file = Input::of(fd);
  if (!file) return pass(file);
  const SymbolOwner owner{path, {}, {}};
  return read_symbols_of(*file, path, &owner, options);
}

Result<Symbols> read_symbols(std::span<const std::byte> file, std::string_view name) {
  return read_symbols_of(Input(file), name, nullptr, {nullptr, nullptr});
}

}  // namespace molt::elf
