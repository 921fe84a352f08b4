// maps.hpp - /proc/self/maps, line by line, without allocating.
//
// A mapping that exists all the while is never missed, although others come and go between two
// reads: the kernel goes on at the address where it stopped.
#pragma once

#include "base/own_fd.hpp"
#include "elf/loaded.hpp"

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace molt::elf {

//     7f0c1e000000-7f0c1e021000 r-xp 00000000 fe:00 10954476        /usr/lib/libx.so (deleted)
struct MapsLine {
  Range range;
  bool readable = false, writable = false, executable = false, shared = false;
  MappedFile file;        // inode 0: anonymous
  std::string_view path;  // as written: '\n' is "\012"; good until the next line is read
  bool complete = true;   // false: the path goes on
};

class MapsReader {
 public:
  enum class Next { line, end, failed };

  MapsReader();
  [[nodiscard]] Next next(MapsLine& line);

  static constexpr std::size_t buffer_bytes = 8192;

 private:
  OwnFd fd_;
  // buffer_[begin_, end_) is read but not handed out yet.
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  bool rest_of_long_line_ = false;
  char buffer_[buffer_bytes];
};

}  // namespace molt::elf
