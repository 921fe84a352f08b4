// patch_text.hpp - what a patch file says, for people and as JSON.
#pragma once

#include "cli/print.hpp"
#include "patchfile/patch_file.hpp"

#include <string>

namespace molt::cli {

Json describe_patch(const std::string& path, std::size_t bytes, const patchfile::PatchFile& file);
std::string show_patch(const Json& fields);

}  // namespace molt::cli
