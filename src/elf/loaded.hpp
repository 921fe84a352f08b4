// loaded.hpp - what of this process's loaded objects is where, and what is really gone.
//
// dlclose() answers 0 whether or not it unmapped anything. That an object is gone is therefore shown
// by three means, all of which must agree: dlopen(RTLD_NOLOAD) finds nothing, it is not in the
// dynamic loader's list (in_link_map), and no mapping of its file is left (mapped).
//
// Every function may be called from any thread, changes nothing and, mapping_at() apart, allocates nothing. Those that
// look at the loader's list take its lock for the time of a walk over all objects (a few
// microseconds): never from a signal handler. Only the objects of the caller's link-map namespace
// are seen, that is all but dlmopen()'s.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace molt::elf {

// Addresses of this process: [begin, end).
struct Range {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;

  bool contains(std::uintptr_t address) const { return address >= begin && address < end; }
  std::size_t size() const { return end - begin; }
};

struct LoadedObject {
  static constexpr std::size_t most_text = 8;

  // All its pages, holes between segments included.
  Range extent;
  // Its executable segments, by whole pages, ascending. Of an object with more than most_text of
  // them the last range covers all the rest: too much rather than too little.
  std::array<Range, most_text> text;
  std::size_t text_count = 0;
};

// The object that an address lies in; nothing for addresses of none.
[[nodiscard]] std::optional<LoadedObject> object_at(const void* address);
[[nodiscard]] std::optional<Range> extent_of(const void* address);

// Does the dynamic loader list an object of that name? The name is what dlopen was given, if that
// was a path, to the byte: no links are followed.
[[nodiscard]] bool in_link_map(std::string_view path);

// A file as /proc/self/maps spells it. On some file systems (btrfs, some overlays) that is another
// device number than stat gives: ask for it while the file is mapped.
struct MappedFile {
  unsigned device_major = 0;
  unsigned device_minor = 0;
  std::uint64_t inode = 0;
};
// The file mapped at an address. Nothing for anonymous memory, or where maps cannot be read.
[[nodiscard]] std::optional<MappedFile> mapped_file_at(const void* address);

// The mapping that an address is in.
struct MappingAt {
  Range range;
  MappedFile file;   // inode 0: anonymous
  std::string path;  // where the file was when it was mapped; "" where that is not known
};
// Allocates. Nothing where nothing is mapped, or maps cannot be read.
[[nodiscard]] std::optional<MappingAt> mapping_at(const void* address);

// Is what the dynamic loader mapped of that file still there: any page in `where`, or one anywhere that can be
// run? Others may have views of the file elsewhere, to read in it: those are none of it (symbolizers keep such).
// True as well if /proc/self/maps cannot be read: absence has to be proven, so a failure never counts
// as absence.
[[nodiscard]] bool mapped(const MappedFile& file, const Range& where);

}  // namespace molt::elf
