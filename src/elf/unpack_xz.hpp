// unpack_xz.hpp - what .gnu_debugdata holds: an ELF file in xz.
#pragma once

#include "base/memory.hpp"
#include "base/result.hpp"
#include "elf/read.hpp"

namespace molt::elf {

// Fails with ENOEXEC for damaged data, with EFBIG for what unpacks to more than 256 MiB or wants more
// than 64 MiB to be unpacked, and with ENOMEM. Takes memory from malloc only, and gives it back.
[[nodiscard]] Result<Bytes> unpack_xz(View packed);

}  // namespace molt::elf
