// diff_file.hpp - the user's diff: which files it touches, put into a tree and taken out again.
#pragma once

#include "base/result.hpp"

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace molt::builder {

struct PatchedFile {
  std::string path;                     // relative to the tree
  std::optional<std::string> old_text;  // none: the diff adds the file
  std::optional<std::string> new_text;  // none: it removes it
};

// Applies it with patch(1), -p1 or -p0, whichever fits. On failure the tree is as it was. EINVAL: not a
// diff, or not of this tree; EALREADY: it is in the tree already. `before` hears of the files that the
// diff names, with their old texts, before any is changed.
[[nodiscard]] Result<std::vector<PatchedFile>> apply_diff(
    const std::string& diff, const std::string& tree,
    const std::function<Status(const std::vector<PatchedFile>&)>& before);

// Old texts in one file, and back again.
[[nodiscard]] Status save_old(const std::vector<PatchedFile>& files, const std::string& path);
[[nodiscard]] Result<std::vector<PatchedFile>> read_old(const std::string& path);

// Writes one state of the files into the tree, all of them newer than anything there, so that a build
// sees every one as changed.
[[nodiscard]] Status write_old(const std::vector<PatchedFile>& files, const std::string& tree);
[[nodiscard]] Status write_new(const std::vector<PatchedFile>& files, const std::string& tree);

}  // namespace molt::builder
