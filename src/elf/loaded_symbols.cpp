#include "elf/loaded_symbols.hpp"

#include "elf/input.hpp"
#include "elf/symbol_files.hpp"
#include "elf/visit.hpp"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cinttypes>
#include <cstdio>

namespace molt::elf {

namespace {

std::string_view name_of(const dl_phdr_info& info) {
  return info.dlpi_name != nullptr ? info.dlpi_name : "";
}

View memory(std::uintptr_t begin, std::uintptr_t end) {
  return {reinterpret_cast<const std::byte*>(begin), end - begin};
}

// The object's readable memory from an address to the end of the segment that it is in.
View readable_from(const dl_phdr_info& info, std::uintptr_t address) {
  for (const Elf64_Phdr& segment : segments_of(info)) {
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_R) == 0) continue;
    const std::uintptr_t begin = info.dlpi_addr + segment.p_vaddr;
    if (address >= begin && address - begin < segment.p_memsz) {
      return memory(address, begin + segment.p_memsz);
    }
  }
  return {};
}

// What the object's dynamic table leads to, in memory.
struct DynamicTables {
  View symbols;
  View strings;
  View versym;
  View verdef;
  std::string_view soname;
};

// The records of a DT_VERDEF chain, from the first to the last that anything refers to.
View verdef_records(View rest) {
  std::uint64_t end = 0;
  for (std::uint64_t at = 0; auto record = read<Elf64_Verdef>(rest, at);) {
    end = std::max(end, at + sizeof(Elf64_Verdef));
    if (within(at + record->vd_aux, sizeof(Elf64_Verdaux), rest.size())) {
      end = std::max(end, at + record->vd_aux + sizeof(Elf64_Verdaux));
    }
    if (record->vd_next == 0) break;
    at += record->vd_next;
  }
  return rest.first(end);
}

DynamicTables dynamic_tables(const dl_phdr_info& info) {
  DynamicTables tables;
  View dynamic;
  for (const Elf64_Phdr& segment : segments_of(info)) {
    if (segment.p_type != PT_DYNAMIC) continue;
    dynamic = readable_from(info, info.dlpi_addr + segment.p_vaddr);
    dynamic = dynamic.first(std::min<std::size_t>(dynamic.size(), segment.p_memsz));
  }
  const Range extent = extent_of(info);
  // glibc has made addresses of most of them; of the kernel's object, which it cannot write to, not.
  auto at = [&](std::uint64_t value) {
    return readable_from(info, extent.contains(value) ? value : info.dlpi_addr + value);
  };
  std::optional<std::uint64_t> soname;
  std::uint64_t string_bytes = 0;
  View hash;
  View gnu_hash;
  for (std::uint64_t offset = 0; auto entry = read<Elf64_Dyn>(dynamic, offset);
       offset += sizeof(Elf64_Dyn)) {
    const std::uint64_t value = entry->d_un.d_val;
    if (entry->d_tag == DT_NULL) break;
    switch (entry->d_tag) {
      case DT_STRTAB:
        tables.strings = at(value);
        break;
      case DT_STRSZ:
        string_bytes = value;
        break;
      case DT_SYMTAB:
        tables.symbols = at(value);
        break;
      case DT_HASH:
        hash = at(value);
        break;
      case DT_GNU_HASH:
        gnu_hash = at(value);
        break;
      case DT_VERSYM:
        tables.versym = at(value);
        break;
      case DT_VERDEF:
        tables.verdef = verdef_records(at(value));
        break;
      case DT_SONAME:
        soname = value;
        break;
      default:
        break;
    }
  }
  auto cut = [](View& view, std::uint64_t bytes) {
    view = view.first(std::min<std::uint64_t>(view.size(), bytes));
  };
  cut(tables.strings, string_bytes);
  if (soname) tables.soname = text_at(tables.strings, *soname).value_or(std::string_view{});
  std::uint64_t count = 0;
  if (auto symbols = read<std::uint32_t>(hash, 4)) {
    count = *symbols;
  } else if (auto end = gnu_hash_end(gnu_hash)) {
    count = *end;
  }
  cut(tables.symbols, count * sizeof(Elf64_Sym));
  cut(tables.versym, count * sizeof(std::uint16_t));
  return tables;
}

View build_id_of(const dl_phdr_info& info) {
  View found;
  for (const Elf64_Phdr& segment : segments_of(info)) {
    if (segment.p_type != PT_NOTE) continue;
    View notes = readable_from(info, info.dlpi_addr + segment.p_vaddr);
    notes = notes.first(std::min<std::size_t>(notes.size(), segment.p_memsz));
    for_each_note(notes, segment.p_align == 8 ? 8 : 4,
                  [&](std::string_view owner, std::uint32_t type, View text) {
                    using namespace std::string_view_literals;
                    if (owner == "GNU\0"sv && type == NT_GNU_BUILD_ID) found = text;
                  });
  }
  return found;
}

// An object copied while the loader's lock is held, hence without allocating. What does not fit is
// cut off, and then equals nothing.
struct Snapshot {
  template <std::size_t size>
  struct Text {
    std::array<char, size> bytes;
    std::size_t length = 0;
    void operator=(std::string_view text) {
      length = std::min(text.size(), size);
      std::copy_n(text.begin(), length, bytes.begin());
    }
    std::string_view view() const { return {bytes.data(), length}; }
  };
  static constexpr std::size_t most_segments = 64;

  void take(const dl_phdr_info& info, bool program) {
    name = name_of(info);
    soname = dynamic_tables(info).soname;
    build_id = as_text(build_id_of(info));
    bias = info.dlpi_addr;
    extent = extent_of(info);
    is_program = program;
    segment_count = std::min<std::size_t>(info.dlpi_phnum, most_segments);
    std::copy_n(info.dlpi_phdr, segment_count, segments.begin());
  }

  Text<4096> name;
  Text<256> soname;
  Text<64> build_id;
  std::uintptr_t bias = 0;
  Range extent;
  bool is_program = false;
  std::array<Elf64_Phdr, most_segments> segments;
  std::size_t segment_count = 0;
};

std::string_view last_part(std::string_view path) { return path.substr(path.rfind('/') + 1); }

NamedObject named(const Snapshot& snapshot) {
  NamedObject object;
  object.path = snapshot.name.view();
  object.soname = snapshot.soname.view();
  object.build_id = hexadecimal(std::as_bytes(std::span(snapshot.build_id.view())));
  object.bias = snapshot.bias;
  object.extent = snapshot.extent;
  object.is_program = snapshot.is_program;
  object.segments.assign(snapshot.segments.begin(),
                         snapshot.segments.begin() + snapshot.segment_count);
  if (object.path.empty()) {
    auto mapping = mapping_at(reinterpret_cast<const void*>(object.extent.begin));
    if (mapping) object.path = mapping->path;
  }
  return object;
}

bool is_same(const dl_phdr_info& info, const NamedObject& object) {
  const Range extent = extent_of(info);
  return info.dlpi_addr == object.bias && extent.begin == object.extent.begin &&
         extent.end == object.extent.end && is_hexadecimal(build_id_of(info), object.build_id) &&
         (object.is_program || name_of(info) == object.path);
}

// The running object's file, and nothing else. `sections` are read on the way.
struct RunningFile {
  Fd fd;
  Input input;
  Sections sections;
};

std::optional<RunningFile> open_if_running(const char* path, const NamedObject& object,
                                           const std::optional<MappingAt>& mapping) {
  Fd fd = open_to_read(path);
  if (!fd) return std::nullopt;
  auto input = Input::of(fd.get());
  if (!input) return std::nullopt;
  auto sections = Sections::read(*input);
  if (!sections) return std::nullopt;
  if (!object.build_id.empty()) {
    if (sections->build_id(*input) != object.build_id) return std::nullopt;
  } else {
    struct stat info;
    if (!mapping || fstat(fd.get(), &info) != 0) return std::nullopt;
    const MappedFile& file = mapping->file;
    if (info.st_ino != file.inode || major(info.st_dev) != file.device_major ||
        minor(info.st_dev) != file.device_minor) {
      return std::nullopt;
    }
  }
  return RunningFile{std::move(fd), *input, *std::move(sections)};
}

std::optional<RunningFile> open_running_file(const NamedObject& object) {
  const auto mapping = mapping_at(reinterpret_cast<const void*>(object.extent.begin));
  auto attempt = [&](const std::string& path) {
    return path.starts_with('/') ? open_if_running(path.c_str(), object, mapping) : std::nullopt;
  };
  if (object.is_program) {
    if (auto file = attempt("/proc/self/exe")) return file;
  }
  if (mapping && !mapping->path.empty()) {
    if (auto file = attempt(mapping->path)) return file;
  }
  if (!mapping || mapping->path != object.path) {
    if (auto file = attempt(object.path)) return file;
  }
  if (!mapping) return std::nullopt;
  char path[80];
  std::snprintf(path, sizeof path, "/proc/self/map_files/%" PRIxPTR "-%" PRIxPTR,
                mapping->range.begin, mapping->range.end);
  return attempt(path);
}

// .dynsym from memory. Sizes first, then room without the loader's lock, then the bytes.
Status add_dynamic_symbols(SymbolsBuilder& builder, const NamedObject& object) {
  std::array<std::size_t, 4> sizes = {};
  bool found = false;
  auto views = [](const DynamicTables& t) {
    return std::array<View, 4>{t.symbols, t.strings, t.versym, t.verdef};
  };
  visit_objects([&](const dl_phdr_info& info, bool) {
    if (!is_same(info, object)) return false;
    const auto tables = views(dynamic_tables(info));
    std::transform(tables.begin(), tables.end(), sizes.begin(), [](View v) { return v.size(); });
    return found = true;
  });
  std::array<Bytes, 4> copies;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (!copies[i].try_resize(sizes[i])) return fail(ENOMEM, "no memory for a table of symbols");
  }
  if (found) {
    found = false;
    visit_objects([&](const dl_phdr_info& info, bool) {
      if (!is_same(info, object)) return false;
      const auto tables = views(dynamic_tables(info));
      for (std::size_t i = 0; i < sizes.size(); ++i) {
        if (tables[i].size() != sizes[i]) return true;  // another object in the same place
      }
      for (std::size_t i = 0; i < sizes.size(); ++i) {
        if (sizes[i] != 0) std::memcpy(copies[i].data(), tables[i].data(), sizes[i]);
      }
      return found = true;
    });
  }
  if (!found) {
    return fail(ESTALE, "'%s' was unloaded while its symbols were read", object.path.c_str());
  }
  return builder.add(copies[0], copies[1], SymbolSource::dynsym, 0, {copies[2], copies[3]});
}

}  // namespace

std::string_view NamedObject::name() const { return last_part(path); }

Result<NamedObject> find_loaded(std::string_view wanted) {
  std::string program;
  Snapshot best;
  visit_objects([&](const dl_phdr_info& info, bool is_program) {
    best.take(info, is_program);
    return true;
  });
  NamedObject first = named(best);
  if (wanted.empty()) return first;

  enum Level { no, by_file_name, by_soname, by_path };
  Level level = no;
  std::size_t count = 0;
  Snapshot another;
  visit_objects([&](const dl_phdr_info& info, bool is_program) {
    const std::string_view path = is_program ? std::string_view(first.path) : name_of(info);
    const Level here = path == wanted                          ? by_path
                       : dynamic_tables(info).soname == wanted ? by_soname
                       : last_part(path) == wanted             ? by_file_name
                                                               : no;
    if (here == no || here < level) return false;
    count = here == level ? count + 1 : 1;
    level = here;
    (count == 1 ? best : another).take(info, is_program);
    return false;
  });
  const auto length = static_cast<int>(std::min<std::size_t>(wanted.size(), 120));
  if (count == 0) {
    return fail(ENOENT, "no object '%.*s' is loaded", length, wanted.data());
  }
  if (count > 1) {
    return fail(ENOTUNIQ, "%zu objects are '%.*s'; say which by its path: %s, %s", count, length,
                wanted.data(), named(best).path.c_str(), named(another).path.c_str());
  }
  return named(best);
}

Result<NamedObject> find_loaded_at(std::uintptr_t address) {
  Snapshot found;
  bool any = false;
  visit_objects([&](const dl_phdr_info& info, bool is_program) {
    if (!extent_of(info).contains(address)) return false;
    found.take(info, is_program);
    return any = true;
  });
  if (!any) return fail(ENOENT, "%#" PRIxPTR " is in no loaded object", address);
  return named(found);
}

// One by one, by ascending address: an object that is there all the while is never left out.
std::vector<NamedObject> loaded_objects() {
  std::vector<NamedObject> objects;
  for (std::uintptr_t after = 0;;) {
    Snapshot next;
    std::uintptr_t lowest = UINTPTR_MAX;
    visit_objects([&](const dl_phdr_info& info, bool is_program) {
      const std::uintptr_t begin = extent_of(info).begin;
      if (begin < after || begin >= lowest) return false;
      lowest = begin;
      next.take(info, is_program);
      return false;
    });
    if (lowest == UINTPTR_MAX) return objects;
    objects.push_back(named(next));
    after = lowest + 1;
  }
}

LoadCount load_count() {
  LoadCount count;
  visit_objects([&](const dl_phdr_info& info, bool) {
    count = {info.dlpi_adds, info.dlpi_subs};
    return true;
  });
  return count;
}

Result<Symbols> read_symbols(const NamedObject& object, const SymbolOptions& options) {
  SymbolsBuilder builder(object.name());
  SymbolOwner owner{object.path, object.build_id, {}};
  for (const Elf64_Phdr& segment : object.segments) {
    if (segment.p_type != PT_LOAD) continue;
    owner.base = std::min<std::uint64_t>(owner.base.value_or(UINT64_MAX), segment.p_vaddr);
  }
  const auto file = open_running_file(object);
  Result<bool> complete = false;
  if (file) {
    complete = add_static_symbols(builder, file->input, file->sections, owner, options);
  } else {
    builder.note(object.path.empty()
                     ? "/proc/self/exe cannot be read"
                     : "its file cannot be read, or is another since it was loaded");
    complete = add_debug_file(builder, "", owner, options);
  }
  if (!complete) return pass(complete);
  if (!*complete) {
    if (auto done = builder.use_sections(file ? &file->sections : nullptr, 0); !done) {
      return pass(done);
    }
    if (auto done = add_dynamic_symbols(builder, object); !done) return pass(done);
  }
  auto symbols = builder.finish(object.bias);
  if (!visit_objects([&](const dl_phdr_info& info, bool) { return is_same(info, object); })) {
    return fail(ESTALE, "'%s' was unloaded while its symbols were read", object.path.c_str());
  }
  return symbols;
}

namespace {
bool relocates_code(const NamedObject& object) {
  bool found = false;
  for (const Elf64_Phdr& segment : object.segments) {
    if (segment.p_type != PT_DYNAMIC) continue;
    const bool is_there = visit_objects([&](const dl_phdr_info& info, bool) {
      if (!is_same(info, object)) return false;
      const auto* entry = reinterpret_cast<const Elf64_Dyn*>(object.bias + segment.p_vaddr);
      for (; entry->d_tag != DT_NULL; ++entry) {
        found = found || entry->d_tag == DT_TEXTREL ||
                (entry->d_tag == DT_FLAGS && (entry->d_un.d_val & DF_TEXTREL) != 0);
      }
      return true;
    });
    if (!is_there) return true;
  }
  return found;
}
}  // namespace

std::optional<Bytes> bytes_in_file(const NamedObject& object, std::uintptr_t begin,
                                   std::size_t bytes) {
  for (const Elf64_Phdr& segment : object.segments) {
    const std::uintptr_t offset = begin - (object.bias + segment.p_vaddr);
    if (segment.p_type != PT_LOAD || offset >= segment.p_filesz) continue;
    if (bytes > segment.p_filesz - offset || relocates_code(object)) return std::nullopt;
    const auto file = open_running_file(object);
    if (!file) return std::nullopt;
    auto read = file->input.read(segment.p_offset + offset, bytes);
    return read ? std::optional<Bytes>(std::move(*read)) : std::nullopt;
  }
  return std::nullopt;
}

}  // namespace molt::elf
