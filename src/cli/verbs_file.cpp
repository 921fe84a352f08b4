// Verbs about module files, without a process and without loading anything.

#include "cli/module_file.hpp"
#include "cli/patch_check.hpp"
#include "cli/patch_text.hpp"
#include "cli/print.hpp"
#include "cli/verbs.hpp"
#include "elf/hazards.hpp"
#include "elf/loadable.hpp"
#include "patchfile/patch_file.hpp"

#include <molt/module.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

namespace molt::cli {
namespace {

struct Finding {
  std::string kind;
  std::string symbol;  // as the linker knows it, or empty
  std::string text;    // why; what to do
};

const char* kind_name(elf::Hazard::Kind kind) {
  switch (kind) {
    case elf::Hazard::unique_symbol:
      return "unique_symbol";
    case elf::Hazard::nodelete:
      return "nodelete";
    case elf::Hazard::thread_local_destructor:
      return "thread_local_destructor";
    case elf::Hazard::static_tls:
      return "static_tls";
    case elf::Hazard::executable_stack:
      return "executable_stack";
  }
  return "other";
}

// The first two words of the descriptor need no relocation; the magic does, so the note tells it.
void check_descriptor(const elf::Image& image, std::vector<Finding>& findings) {
  const elf::SymbolTable& symbols = image.dynamic_symbols();
  const auto descriptor =
      std::find_if(symbols.begin(), symbols.end(), [](const elf::Symbol& symbol) {
        return symbol.exported() && symbol.name == MOLT_MODULE_SYMBOL;
      });
  if (descriptor == symbols.end()) {
    findings.push_back({"no_descriptor", MOLT_MODULE_SYMBOL,
                        "not a Molt module: the file does not export it; write MOLT_MODULE(...) "
                        "once, see molt-module(5)"});
    return;
  }
  const std::string rebuild = "; rebuild it with the headers of this Molt";

  struct {
    std::uint32_t size, abi;
  } head{};
  if (const auto bytes = image.at_address((*descriptor).value, sizeof head)) {
    std::memcpy(&head, bytes->data(), sizeof head);
  }
  if (head.abi != MOLT_ABI || head.size < sizeof(molt_module)) {
    findings.push_back(
        {"abi", MOLT_MODULE_SYMBOL,
         fmt::format("built for interface {}, this is {}{}", head.abi, MOLT_ABI, rebuild)});
  }
  if (const auto magic = image.note("magic"); magic != MOLT_MAGIC) {
    findings.push_back({"magic", MOLT_MODULE_SYMBOL,
                        fmt::format("version magic '{}' should be '{}'{}", magic.value_or(""),
                                    MOLT_MAGIC, rebuild)});
  }
}

// What makes glibc register such a destructor; which variable it is for is a guess where the module
// has several.
std::string import_behind(const elf::Image& image) {
  for (const elf::Symbol& symbol : image.undefined_symbols()) {
    if (symbol.name.starts_with("__cxa_thread_atexit")) return std::string(symbol.name);
  }
  return "";
}

std::vector<Finding> examine(const std::string& path, const std::vector<std::string>& targets,
                             const std::vector<int>& pids) {
  const std::vector<std::byte> bytes = read_module_file(path);
  if (patchfile::PatchFile::is_one(bytes)) {
    const auto file = patchfile::PatchFile::parse(bytes);
    if (!file) return {{"damaged", "", file.error().detail}};
    std::vector<Finding> findings;
    for (std::string& line : check_patch(*file, targets, pids)) {
      findings.push_back({"not_this_program", "", std::move(line)});
    }
    return findings;
  }
  const Result<elf::Image> image = elf::Image::parse(bytes);
  if (!image) return {{"no_shared_object", "", image.error().detail}};
  if (Status ok = check_loadable(*image); !ok) {
    return {{"no_shared_object", "", ok.error().detail}};
  }

  std::vector<Finding> findings;
  check_descriptor(*image, findings);
  for (const auto& hazards : {unload_hazards(*image), lasting_effects(*image)}) {
    for (const elf::Hazard& hazard : hazards) {
      // Of a variable that is named itself.
      const bool is_guard = hazard.symbol.starts_with("_ZGV");
      if (hazard.kind == elf::Hazard::unique_symbol && is_guard) continue;
      Finding finding{kind_name(hazard.kind), hazard.symbol, hazard.text};
      if (hazard.kind == elf::Hazard::thread_local_destructor) {
        finding.text += fmt::format(" (imports {})", import_behind(*image));
        if (finding.symbol.empty()) finding.symbol = import_behind(*image);
      }
      findings.push_back(std::move(finding));
    }
  }
  return findings;
}

std::string line_of(const std::string& path, const Finding& finding) {
  const bool is_named = finding.text.find(finding.symbol) != std::string::npos;
  const std::string symbol = is_named ? "" : demangled(finding.symbol) + ": ";
  return fmt::format("{}: {}{}", path, symbol, demangled(finding.text));
}

}  // namespace

Runner declare_check(CLI::App& verb) {
  auto paths = std::make_shared<std::vector<std::string>>();
  auto targets = std::make_shared<std::vector<std::string>>();
  verb.add_option("FILE", *paths, "Module files and patch files")->required();
  verb.add_option("--target", *targets, "A program or library that patch files must fit")
      ->option_text("FILE")
      ->allow_extra_args(false);
  return [paths, targets](const Options& options) {
    Json files = Json::array();
    std::string text;
    bool any_refused = false;
    Tally unreadable;
    for (const std::string& path : *paths) {
      Json object = {{"file", path}};
      try {
        const std::vector<Finding> findings = examine(path, *targets, options.selection.pids);
        object["ok"] = findings.empty();
        object["findings"] = Json::array();
        for (const Finding& finding : findings) {
          object["findings"].push_back({{"kind", finding.kind},
                                        {"symbol", demangled(finding.symbol)},
                                        {"text", demangled(finding.text)}});
          print_error(line_of(path, finding));
        }
        any_refused |= !findings.empty();
        if (findings.empty() && options.verbose) text += fmt::format("{}: OK\n", printable(path));
      } catch (const Failure& failure) {
        object["error"] = failure.json();
        print_error(failure.message);
        unreadable.failed(failure.exit_code());
      }
      files.push_back(std::move(object));
    }
    print_result(options, "check", {{"files", std::move(files)}}, text);
    return any_refused ? int{exit_refused} : unreadable.exit_code();
  };
}

namespace {

// "NAME REST" of the notes for hooks, exports and imports.
Json name_and_signature(std::string_view value, const char* name_key) {
  const std::size_t blank = std::min(value.find(' '), value.size());
  return {{name_key, value.substr(0, blank)},
          {"signature", value.substr(std::min(blank + 1, value.size()))}};
}

// "NAME:TYPE:DESCRIPTION"
Json parameter(std::string_view value) {
  const std::size_t type = std::min(value.find(':'), value.size() - 1) + 1;
  const std::size_t description = std::min(value.find(':', type), value.size() - 1) + 1;
  return {{"name", value.substr(0, type - 1)},
          {"type", value.substr(type, description - type - 1)},
          {"description", value.substr(description)}};
}

Json describe(const std::string& path, const elf::Image& image) {
  Json fields = {{"file", path}};
  for (const char* key : {"name", "version", "description", "license", "magic"}) {
    fields[key] = image.note(key).value_or("");
  }
  fields["srcversion"] = image.build_id();
  fields["size"] = image.loaded_bytes();
  for (const char* key : {"parameters", "callbacks", "exports", "imports", "hazards"}) {
    fields[key] = Json::array();
  }
  for (const elf::Note& note : image.module_notes()) {
    if (note.key == "parm" && !note.value.empty()) {
      fields["parameters"].push_back(parameter(note.value));
    } else if (note.key == "hook") {
      fields["callbacks"].push_back(name_and_signature(note.value, "hook"));
    } else if (note.key == "export") {
      fields["exports"].push_back(name_and_signature(note.value, "name"));
    } else if (note.key == "import") {
      fields["imports"].push_back(name_and_signature(note.value, "name"));
    }
  }
  for (const auto& hazards : {unload_hazards(image), lasting_effects(image)}) {
    for (const elf::Hazard& hazard : hazards) fields["hazards"].push_back(demangled(hazard.text));
  }
  return fields;
}

std::string show(const Json& fields) {
  std::string text = field_line("filename", fields["file"].get<std::string>());
  const auto value = [](const Json& object, const char* key) { return object.value(key, ""); };
  for (const char* key : {"name", "version", "description", "license", "srcversion", "magic"}) {
    if (!fields[key].empty()) text += field_line(key, value(fields, key));
  }
  text += field_line("size", std::to_string(fields["size"].get<std::uint64_t>()));
  for (const Json& one : fields["parameters"]) {
    text += field_line("parm", fmt::format("{}:{} ({})", value(one, "name"),
                                           value(one, "description"), value(one, "type")));
  }
  for (const Json& one : fields["callbacks"]) {
    text += field_line("hook", value(one, "hook") + " " + value(one, "signature"));
  }
  for (const auto& [key, list] : {std::pair{"export", "exports"}, std::pair{"import", "imports"}}) {
    for (const Json& one : fields[list]) {
      text += field_line(key, value(one, "name") + " " + value(one, "signature"));
    }
  }
  for (const Json& one : fields["hazards"]) text += field_line("hazard", one.get<std::string>());
  return text;
}

}  // namespace

int show_file(const Options& options, const std::string& path) {
  const std::vector<std::byte> bytes = read_module_file(path);
  if (patchfile::PatchFile::is_one(bytes)) {
    const auto file = patchfile::PatchFile::parse(bytes);
    if (!file) {
      fail(ErrorClass::refused, file.error().code, "{}: {}", path, file.error().detail);
    }
    const Json fields = describe_patch(path, bytes.size(), *file);
    print_result(options, "info", fields, show_patch(fields));
    return exit_done;
  }
  const Result<elf::Image> image = elf::Image::parse(bytes);
  if (!image) {
    fail(ErrorClass::refused, image.error().code, "{}: {}", path, image.error().detail);
  }
  if (!image->note("name")) {
    fail(ErrorClass::refused, ENOEXEC, "{}: not a Molt module; `molt check {}` tells what it lacks",
         path, path);
  }
  const Json fields = describe(path, *image);
  print_result(options, "info", fields, show(fields));
  return exit_done;
}

}  // namespace molt::cli
