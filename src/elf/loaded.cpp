#include "elf/loaded.hpp"

#include "base/fd.hpp"
#include "elf/visit.hpp"

#include <fcntl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

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

// One line of /proc/self/maps:
//     7f0c1e000000-7f0c1e021000 r-xp 00000000 fe:00 10954476        /usr/lib/libx.so (deleted)
struct MapsLine {
  Range range;
  MappedFile file;        // inode 0: anonymous
  std::string_view path;  // as written: '\n' is "\012"
  bool complete = true;   // false: the path goes on
};

// A number in `text`, which then begins behind it and behind the character that follows.
template <class T>
bool take_number(std::string_view& text, T& value, int base) {
  auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc{}) return false;
  text.remove_prefix(std::min<std::size_t>(stop - text.data() + 1, text.size()));
  return true;
}

void skip_word(std::string_view& text) {
  text.remove_prefix(std::min(text.find(' '), text.size()));
  text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
}

bool parse_line(std::string_view text, MapsLine& line) {
  if (!take_number(text, line.range.begin, 16) || !take_number(text, line.range.end, 16)) {
    return false;
  }
  skip_word(text);  // permissions
  skip_word(text);  // offset
  if (!take_number(text, line.file.device_major, 16) ||
      !take_number(text, line.file.device_minor, 16) || !take_number(text, line.file.inode, 10)) {
    return false;
  }
  line.path = text.substr(std::min(text.find_first_not_of(' '), text.size()));
  return true;
}

// Reads maps piece by piece. A mapping that exists all the while is never missed, although others
// come and go between two pieces: the kernel goes on at the address where it stopped.
class MapsReader {
 public:
  enum class Next { line, end, failed };

  MapsReader() : fd_(::open("/proc/self/maps", O_RDONLY | O_CLOEXEC)) {}

  // The line's path is good until the next call.
  Next next(MapsLine& line) {
    if (!fd_) return Next::failed;
    for (;;) {
      const char* begin = buffer_ + begin_;
      if (const void* newline = std::memchr(begin, '\n', end_ - begin_)) {
        const std::size_t bytes = static_cast<const char*>(newline) - begin;
        begin_ += bytes + 1;
        if (rest_of_long_line_) {
          rest_of_long_line_ = false;
          continue;
        }
        line.complete = true;
        return parse_line({begin, bytes}, line) ? Next::line : Next::failed;
      }
      if (end_ - begin_ == sizeof buffer_) {
        begin_ = end_;
        if (rest_of_long_line_) continue;
        rest_of_long_line_ = true;
        line.complete = false;
        return parse_line({begin, sizeof buffer_}, line) ? Next::line : Next::failed;
      }
      std::memmove(buffer_, begin, end_ - begin_);
      end_ -= begin_;
      begin_ = 0;
      const ssize_t got = ::read(fd_.get(), buffer_ + end_, sizeof buffer_ - end_);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return Next::failed;
      // Lines are whole in maps: something left over means that it is not what we think it is.
      if (got == 0) return end_ == 0 ? Next::end : Next::failed;
      end_ += static_cast<std::size_t>(got);
    }
  }

  static constexpr std::size_t buffer_bytes = 8192;

 private:
  Fd fd_;
  // buffer_[begin_, end_) is read but not handed out yet.
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  bool rest_of_long_line_ = false;
  char buffer_[buffer_bytes];
};

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
