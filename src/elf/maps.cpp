#include "elf/maps.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

namespace molt::elf {
namespace {

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
  if (!take_number(text, line.range.begin, 16) || !take_number(text, line.range.end, 16) ||
      text.size() < 4) {
    return false;
  }
  line.readable = text[0] == 'r';
  line.writable = text[1] == 'w';
  line.executable = text[2] == 'x';
  line.shared = text[3] == 's';
  skip_word(text);  // permissions
  skip_word(text);  // offset
  if (!take_number(text, line.file.device_major, 16) ||
      !take_number(text, line.file.device_minor, 16) || !take_number(text, line.file.inode, 10)) {
    return false;
  }
  line.path = text.substr(std::min(text.find_first_not_of(' '), text.size()));
  return true;
}

}  // namespace

MapsReader::MapsReader() : fd_(own_open("/proc/self/maps", O_RDONLY)) {}

MapsReader::Next MapsReader::next(MapsLine& line) {
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

}  // namespace molt::elf
