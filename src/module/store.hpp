// store.hpp - the content-addressed copies from which modules are really loaded.
//
// A module's file may be overwritten, truncated or deleted while it is loaded: the process runs on
// its own copy, DIRECTORY/store/HASH.so, which nobody else writes. Debuggers find the code there.
// Two live instances of one content need two inodes (the dynamic loader gives one handle for one
// inode), so later ones are HASH-N.so. Where no directory can be written or executed from, a memfd
// serves instead: the code is then visible to debuggers only through /proc/PID/map_files.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "base/result.hpp"

namespace molt::module {

struct Stored {
  std::string path;  // what to give to dlopen
  bool in_memory = false;
};

// Writes a copy. -ENOSPC, -EACCES and the like only if the memfd fails as well.
Result<Stored> store_copy(std::span<const std::byte> content, const std::string& hash);
// Once dlopen has answered, for better or worse: the copy's descriptor, if any, is not needed more.
void store_mapped(const Stored& stored);
// After the copy was unmapped, or was never loaded.
void store_forget(const Stored& stored);

// Why dlopen failed, by what it says and its errno; neither always tells: ENOMEM, EMFILE, ENFILE; EBADF:
// what it had open was not the copy any more, which had been examined (its descriptor is in the host's
// table, since what the module's constructors open is the host's); else ENOEXEC.
int cause_of(const std::string& complaint, int code);

}  // namespace molt::module
