#include "cli/patch_text.hpp"

namespace molt::cli {
namespace {

std::string hexadecimal(std::span<const unsigned char> bytes) {
  std::string text;
  for (unsigned char b : bytes) text += fmt::format("{:02x}", b);
  return text;
}

// Those of which there is one, and those of which there may be many.
constexpr const char* single[] = {"name",   "version", "description", "license",
                                  "author", "builder", "diff"};
constexpr const char* many[] = {"cve", "signed-off-by", "source", "compiler", "flag", "note"};

}  // namespace

Json describe_patch(const std::string& path, std::size_t bytes, const patchfile::PatchFile& file) {
  Json fields = {{"file", path}, {"kind", "patch"}, {"bytes", bytes}};
  for (const char* key : single) fields[key] = file.info(key);
  for (const char* key : many) fields[key] = Json::array();
  for (const patchfile::Info& one : file.info()) {
    for (const char* key : many) {
      if (one.key == key) fields[key].push_back(one.value);
    }
  }
  fields["targets"] = Json::array();
  for (const patchfile::Target& target : file.targets()) {
    fields["targets"].push_back(
        {{"name", target.name}, {"build_id", target.build_id}, {"program", target.is_program}});
  }
  fields["functions"] = Json::array();
  for (const patchfile::Function& function : file.functions()) {
    if (function.is_part) continue;
    fields["functions"].push_back({{"name", demangled(std::string(function.name))},
                                   {"target", file.targets()[function.target].name},
                                   {"old_address", function.old_address},
                                   {"old_size", function.old_size},
                                   {"new_size", file.symbols()[function.symbol].size},
                                   {"old_hash", hexadecimal(function.old_hash)},
                                   {"new_hash", hexadecimal(function.new_hash)}});
  }
  return fields;
}

std::string show_patch(const Json& fields) {
  std::string text = field_line("filename", fields["file"].get<std::string>());
  for (const char* key : single) {
    const auto value = fields[key].get<std::string>();
    if (!value.empty()) text += field_line(key, value);
  }
  for (const char* key : many) {
    for (const Json& value : fields[key]) text += field_line(key, value.get<std::string>());
  }
  for (const Json& target : fields["targets"]) {
    text += field_line(
        "target", fmt::format("{} {}", target.value("name", ""), target.value("build_id", "")));
  }
  for (const Json& f : fields["functions"]) {
    text += field_line("replaces", fmt::format("{} in {}, {} -> {} bytes", f.value("name", ""),
                                               f.value("target", ""), f.value("old_size", 0),
                                               f.value("new_size", 0)));
  }
  return text + field_line("size", std::to_string(fields["bytes"].get<std::uint64_t>()));
}

}  // namespace molt::cli
