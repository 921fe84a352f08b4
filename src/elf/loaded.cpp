#include "elf/loaded.hpp"

#include "base/fd.hpp"
#include "elf/maps.hpp"
#include "elf/visit.hpp"

#include <fcntl.h>

#include <algorithm>

namespace molt::elf {

namespace {

LoadedObject describe(const dl_phdr_info& info) {
  LoadedObject object;
  object.extent = extent_of(info);
  for (const Elf64_Phdr& segment : segments_of(info)) {
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_X) == 0) continue;
    const Range pages = pages_of(info, segment);
    if (object.text_count == LoadedObject::most_text) {
      object.text.back().end = pages.end;
    } else {
      object.text[object.text_count++] = pages;
    }
  }
  return object;
}

}  // namespace

std::optional<LoadedObject> object_at(const void* address) {
  const auto wanted = reinterpret_cast<std::uintptr_t>(address);
  std::optional<LoadedObject> found;
  visit_objects([&](const dl_phdr_info& info, bool) {
    LoadedObject object = describe(info);
    if (!object.extent.contains(wanted)) return false;
    found = object;
    return true;
  });
  return found;
}

std::optional<Range> extent_of(const void* address) {
  auto object = object_at(address);
  if (!object) return std::nullopt;
  return object->extent;
}

bool in_link_map(std::string_view path) {
  return visit_objects([&](const dl_phdr_info& info, bool) {
    return info.dlpi_name != nullptr && path == info.dlpi_name;
  });
}

std::optional<MappedFile> mapped_file_at(const void* address) {
  const auto wanted = reinterpret_cast<std::uintptr_t>(address);
  MapsReader maps;
  for (MapsLine line; maps.next(line) == MapsReader::Next::line;) {
    if (!line.range.contains(wanted)) continue;
    if (line.file.inode == 0) break;
    return line.file;
  }
  return std::nullopt;
}

std::optional<MappingAt> mapping_at(const void* address) {
  const auto wanted = reinterpret_cast<std::uintptr_t>(address);
  MapsReader maps;
  for (MapsLine line; maps.next(line) == MapsReader::Next::line;) {
    if (!line.range.contains(wanted)) continue;
    MappingAt found{line.range, line.file, {}};
    if (!line.complete || line.file.inode == 0) return found;
    std::string_view rest = line.path;
    constexpr std::string_view deleted = " (deleted)";
    if (rest.ends_with(deleted)) rest.remove_suffix(deleted.size());
    while (!rest.empty()) {
      const bool newline = rest.starts_with("\\012");
      found.path += newline ? '\n' : rest.front();
      rest.remove_prefix(newline ? 4 : 1);
    }
    return found;
  }
  return std::nullopt;
}

bool mapped(const MappedFile& file, const Range& where) {
  MapsReader maps;
  for (;;) {
    MapsLine line;
    const MapsReader::Next next = maps.next(line);
    if (next != MapsReader::Next::line) return next == MapsReader::Next::failed;
    const bool same = line.file.inode == file.inode &&
                      line.file.device_major == file.device_major &&
                      line.file.device_minor == file.device_minor;
    const bool inside = line.range.begin < where.end && where.begin < line.range.end;
    if (same && (line.executable || inside)) return true;
  }
}

}  // namespace molt::elf
