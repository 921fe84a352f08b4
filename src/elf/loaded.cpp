#include "elf/loaded.hpp"

#include "base/fd.hpp"
#include "elf/maps.hpp"
#include "elf/visit.hpp"

#include <fcntl.h>
#include <sys/sysmacros.h>

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

// True when a line is `wanted`, and when not all lines could be read.
template <class F>
bool any_line(F&& wanted) {
  MapsReader maps;
  for (;;) {
    MapsLine line;
    switch (maps.next(line)) {
      case MapsReader::Next::line:
        if (wanted(line)) return true;
        break;
      case MapsReader::Next::end:
        return false;
      case MapsReader::Next::failed:
        return true;
    }
  }
}

// Is `written` the path, or the path with the mark of a deleted file?
bool same_path(std::string_view written, std::string_view path) {
  for (char c : path) {
    constexpr std::string_view newline = "\\012";
    if (c == '\n' && written.substr(0, newline.size()) == newline) {
      written.remove_prefix(newline.size());
    } else if (!written.empty() && written.front() == c) {
      written.remove_prefix(1);
    } else {
      return false;
    }
  }
  return written.empty() || written == " (deleted)";
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

bool mapped(const MappedFile& file) {
  return any_line([&](const MapsLine& line) {
    return line.file.inode == file.inode && line.file.device_major == file.device_major &&
           line.file.device_minor == file.device_minor;
  });
}

bool mapped(dev_t device, ino_t inode) {
  return mapped(MappedFile{major(device), minor(device), inode});
}

bool mapped(std::string_view path) {
  if (path.empty()) return false;  // would match anonymous memory
  return any_line([&](const MapsLine& line) {
    if (line.complete) return same_path(line.path, path);
    // Its end was not kept. Were it the path, the path would be at least this long.
    return path.size() >= MapsReader::buffer_bytes / 4;
  });
}

}  // namespace molt::elf
