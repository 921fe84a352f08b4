#include "builder/leave_out.hpp"

#include "builder/c_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

namespace molt::builder {
namespace {

std::vector<std::string> texts_of(std::string_view text, const std::vector<TextRange>& ranges) {
  std::vector<std::string> texts;
  texts.reserve(ranges.size());
  for (const TextRange& r : ranges) texts.emplace_back(text.substr(r.begin, r.end - r.begin));
  return texts;
}

}  // namespace

Result<std::vector<std::string>> leave_out(std::vector<PatchedFile>& files,
                                           const std::vector<std::string>& what) {
  std::vector<std::string> notes;
  for (const std::string& name : what) {
    const auto whole = std::ranges::find(files, name, &PatchedFile::path);
    if (whole != files.end()) {
      whole->new_text = whole->old_text;
      notes.push_back(fmt::format("{}: what the diff does to it is left out", name));
      continue;
    }
    // Of a name with a scope the last part.
    const std::size_t scope = name.rfind("::");
    const std::string_view last =
        scope == name.npos ? std::string_view(name) : std::string_view(name).substr(scope + 2);
    std::size_t kept = 0;
    for (PatchedFile& file : files) {
      if (!file.old_text || !file.new_text) continue;
      const auto before = definitions_of(*file.old_text, last);
      const auto now = definitions_of(*file.new_text, last);
      const auto old_texts = texts_of(*file.old_text, before);
      if (before.size() == now.size() && old_texts == texts_of(*file.new_text, now)) continue;
      if (before.size() != now.size()) {
        return fail(
            EINVAL,
            "--leave-out=%s: %s has %zu definitions of it without the diff, and %zu with it",
            name.c_str(), file.path.c_str(), before.size(), now.size());
      }
      for (std::size_t i = now.size(); i-- > 0;) {
        file.new_text->replace(now[i].begin, now[i].end - now[i].begin, old_texts[i]);
      }
      ++kept;
      notes.push_back(fmt::format("{}: {} stays as it is; what the diff does to it is left out",
                                  file.path, name));
    }
    if (kept == 0) {
      return fail(EINVAL, "--leave-out=%s: the diff changes no file and no definition of that name",
                  name.c_str());
    }
  }
  const bool is_any_left = std::ranges::any_of(
      files, [](const PatchedFile& file) { return file.old_text != file.new_text; });
  if (!is_any_left) return fail(EINVAL, "nothing of the diff is left");
  return notes;
}

}  // namespace molt::builder
