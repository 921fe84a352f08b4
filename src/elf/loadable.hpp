// loadable.hpp - whether a file can be given to the dynamic loader.
//
// glibc's loader believes what it maps: a table without an end, a relocation outside the object, a
// version that no needed library has, make it read or write anywhere, or end the process by an
// assertion. It does so in the host, where nothing can be caught. So all that it follows is followed
// here first, in the file's bytes.
//
// Roles      Whoever is about to dlopen() a file that Image::parse() took.
// Invariants L1 What dlopen() and dlsym() of glibc 2.36 read by address lies in the file part of a
//               segment that can be read, and ends there.
//            L2 What they write lies in a segment that can be written, and not in the dynamic table.
//            L3 What they call lies in a segment that can be executed.
//            L4 No two segments share a page, so that what was looked at is what will be mapped.
// Refuses    With ENOEXEC: damaged files, and what no linker makes. Files whose headers are sound and
//            whose code or data is not are loaded: only their makers could tell.
// Checked by tests/elf/loadable_test.cpp, tests/module/damage_test.cpp (which loads what was not
//            refused), tests/fuzz/elf_image.cpp
#pragma once

#include "elf/image.hpp"

namespace molt::elf {

// `image` was parsed for Purpose::load. Time and memory are linear in the size of the file.
[[nodiscard]] Status check_loadable(const Image& image);

}  // namespace molt::elf
