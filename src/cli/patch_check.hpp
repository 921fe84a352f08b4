// patch_check.hpp - does a patch file fit a program, on disk or running?
#pragma once

#include "patchfile/patch_file.hpp"

#include <string>
#include <vector>

namespace molt::cli {

// A line each: why not. Throws where something cannot be read.
//
// Without programs and pids there is nothing to compare with. Of a program on disk and of a process the build-id of each target is compared, and the bytes of each function that is replaced;
// a target that it does not have is no obstacle: it may be loaded later.
std::vector<std::string> check_patch(const patchfile::PatchFile& patch,
                                     const std::vector<std::string>& programs,
                                     const std::vector<int>& pids);

}  // namespace molt::cli
