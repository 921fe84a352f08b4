// `molt build`: a source tree, a build command and a diff in, a patch file out.

#include "builder/capture.hpp"
#include "builder/flow.hpp"
#include "cli/print.hpp"
#include "cli/verbs.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>

namespace molt::cli {
namespace {

namespace fs = std::filesystem;

struct BuildArguments {
  std::string diff;
  std::vector<std::string> targets;
  std::vector<std::string> debug_files;
  std::string source;
  std::string output;
  std::string name;
  std::string description;
  std::vector<std::string> cves;
  std::vector<std::string> keep_old;
  std::vector<std::string> accept;
  std::string callbacks;
  std::vector<std::string> command;
};

std::string existing(const std::string& path, const char* what) {
  std::error_code error;
  const fs::path found = fs::canonical(path, error);
  if (error) {
    fail(class_of_errno(error.value()), error.value(), "{} {}: {}", what, path, error.message());
  }
  return found.string();
}

// Beside the runtime; the build tree and an installation look alike.
std::string capture_library() {
  const fs::path here = fs::read_symlink("/proc/self/exe").parent_path();
  std::error_code error;
  for (const char* folder : {"../lib", "../lib/x86_64-linux-gnu", "../lib64", "."}) {
    const fs::path path = here / folder / "libmolt-capture.so";
    if (fs::exists(path, error)) return fs::canonical(path).string();
  }
  fail(ErrorClass::missing, ENOENT, "libmolt-capture.so is not where this program was installed");
}

// "fixes/CVE-2024-1.patch" -> "CVE-2024-1"; a name may have letters, digits and -._ only.
std::string name_of(const std::string& diff) {
  std::string name = fs::path(diff).filename().string();
  for (const char* ending : {".patch", ".diff"}) {
    if (name.ends_with(ending)) name.resize(name.size() - std::string_view(ending).size());
  }
  for (char& c : name) {
    const bool is_plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                          (c >= 'A' && c <= 'Z') || c == '-' || c == '_' || c == '.';
    if (!is_plain) c = '_';
  }
  constexpr std::size_t bytes_max = 48;
  return name.substr(0, bytes_max);
}

// The folder in which the command runs is where the user stands, if that is in the tree.
std::string folder_of_build(const std::string& source) {
  const std::string here = fs::current_path().string();
  const bool is_inside = here == source || here.starts_with(source + "/");
  return is_inside ? here : source;
}

Json json_of(const builder::Refusal& refusal) {
  return {{"kind", refusal.kind},
          {"unit", refusal.unit},
          {"symbol", demangled(refusal.symbol)},
          {"where", refusal.where},
          {"text", demangled(refusal.text)},
          {"advice", refusal.advice}};
}

Json json_of(const builder::FlowResult& result) {
  Json functions = Json::array();
  for (const builder::PatchedFunction& function : result.patch.report.functions) {
    functions.push_back({{"name", demangled(function.name)},
                         {"unit", function.unit},
                         {"target", function.target},
                         {"old_size", function.old_size},
                         {"new_size", function.new_size}});
  }
  Json refusals = Json::array();
  for (const builder::Refusal& refusal : result.refusals) refusals.push_back(json_of(refusal));
  Json notes = Json::array();
  for (const std::string& note : result.notes) notes.push_back(demangled(note));
  return {{"functions", std::move(functions)},
          {"additions", result.patch.report.additions},
          {"refusals", std::move(refusals)},
          {"notes", std::move(notes)},
          {"units_compiled", result.units_compiled},
          {"units_in_target", result.units_in_target},
          {"base_s", result.base_s},
          {"new_s", result.new_s},
          {"old_s", result.old_s},
          {"compare_s", result.compare_s}};
}

// Renamed into place: a reader never sees half a patch, and an older one stays if this fails.
void write_whole(const std::string& path, const std::vector<std::byte>& bytes) {
  const std::string temporary = fmt::format("{}.{}", path, ::getpid());
  {
    std::ofstream file(temporary, std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
    file.flush();
    if (!file) {
      fs::remove(temporary);
      fail(ErrorClass::failed, EIO, "cannot write {}", path);
    }
  }
  std::error_code error;
  fs::rename(temporary, path, error);
  if (error) fail(class_of_errno(error.value()), error.value(), "cannot write {}", path);
}

builder::FlowRequest request_of(const BuildArguments& arguments, const Options& options) {
  builder::FlowRequest request;
  request.diff = existing(arguments.diff, "the diff");
  request.workspace.source =
      existing(arguments.source.empty() ? "." : arguments.source, "the source tree");
  request.workspace.folder = folder_of_build(request.workspace.source);
  request.workspace.command = arguments.command;
  request.workspace.preload = capture_library();
  request.workspace.wrapper = fs::read_symlink("/proc/self/exe").string();
  if (arguments.debug_files.size() > arguments.targets.size()) {
    fail(ErrorClass::usage, EINVAL, "build: more --debug files than --target files");
  }
  for (std::size_t i = 0; i < arguments.targets.size(); ++i) {
    builder::FlowTarget target{existing(arguments.targets[i], "the target"), ""};
    if (i < arguments.debug_files.size()) {
      target.debug_file = existing(arguments.debug_files[i], "the debug file");
    }
    request.targets.push_back(std::move(target));
  }
  request.patch.name = arguments.name.empty() ? name_of(arguments.diff) : arguments.name;
  request.patch.description = arguments.description;
  request.patch.cves = arguments.cves;
  request.patch.keep_old = arguments.keep_old;
  request.patch.accept = arguments.accept;
  if (!arguments.callbacks.empty()) {
    request.callbacks = existing(arguments.callbacks, "the callbacks");
  }
  if (!options.quiet && !options.json) {
    request.say = [](const std::string& text) { fmt::print(stderr, "molt: {}\n", text); };
    if (::isatty(STDERR_FILENO) != 0) {
      request.workspace.progress = [](std::size_t count) {
        fmt::print(stderr, "molt: {} objects\r", count);
      };
    }
  }
  return request;
}

std::string summary(const builder::FlowResult& result, const std::string& output,
                    const Options& options) {
  std::string text;
  for (const builder::PatchedFunction& function : result.patch.report.functions) {
    text += fmt::format("{}: {} {} -> {} bytes\n", function.target, demangled(function.name),
                        function.old_size, function.new_size);
  }
  if (options.verbose) {
    for (const std::string& name : result.patch.report.additions) {
      text += fmt::format("added: {}\n", demangled(name));
    }
    text += fmt::format(
        "{} units compiled, {} of them in the target; base {:.1f} s, new {:.1f} s, old {:.1f} s, "
        "comparing {:.2f} s\n",
        result.units_compiled, result.units_in_target, result.base_s, result.new_s, result.old_s,
        result.compare_s);
  }
  return text + fmt::format("{}: {} function{}, {} bytes\n", output,
                            result.patch.report.functions.size(),
                            result.patch.report.functions.size() == 1 ? "" : "s",
                            result.patch.bytes.size());
}

int build(const BuildArguments& arguments, const Options& options) {
  const builder::FlowRequest request = request_of(arguments, options);
  auto result = builder::build_from_diff(request);
  if (!result) {
    const int code = result.error().code;
    const bool is_refused = code == EALREADY || code == EILSEQ;
    fail(is_refused ? ErrorClass::refused : class_of_errno(code), code, "{}",
         std::string(result.error().detail));
  }
  Json fields = json_of(*result);
  fields["file"] = "";
  for (const std::string& note : result->notes) {
    if (!options.quiet && !options.json) fmt::print(stderr, "molt: note: {}\n", demangled(note));
  }
  if (!result->refusals.empty()) {
    for (const builder::Refusal& refusal : result->refusals) {
      const std::string advice = refusal.advice.empty() ? "" : "; " + refusal.advice;
      const std::string where = refusal.where.empty() ? "" : refusal.where + ": ";
      print_error(fmt::format("{}{}{}", where, demangled(refusal.text), demangled(advice)));
    }
    print_result(options, "build", fields, "");
    return exit_refused;
  }
  if (result->patch.report.functions.empty()) {
    print_result(options, "build", fields,
                 "no functional change: nothing that runs in the target differs\n");
    return exit_done;
  }
  if (options.dry_run) {
    print_result(options, "build", fields, summary(*result, "(not written)", options));
    return exit_done;
  }
  const std::string output =
      arguments.output.empty() ? request.patch.name + ".molt" : arguments.output;
  write_whole(output, result->patch.bytes);
  fields["file"] = output;
  fields["size"] = result->patch.bytes.size();
  print_result(options, "build", fields, summary(*result, output, options));
  return exit_done;
}

}  // namespace

Runner declare_build(CLI::App& verb) {
  auto arguments = std::make_shared<BuildArguments>();
  const auto several = [](CLI::Option* option, const char* text) {
    option->option_text(text)->allow_extra_args(false);
  };
  verb.add_option("--diff", arguments->diff, "The change, as a unified diff")
      ->option_text("FILE")
      ->required();
  several(verb.add_option("--target", arguments->targets,
                          "The program or library that runs; may be repeated")
              ->required(),
          "FILE");
  several(
      verb.add_option("--debug", arguments->debug_files,
                      "The separate debug file of a stripped target, in the order of the targets"),
      "FILE");
  verb.add_option("--source", arguments->source, "The source tree; default: here")
      ->option_text("DIR");
  verb.add_option("-o,--output", arguments->output, "The patch file; default: NAME.molt")
      ->option_text("FILE");
  verb.add_option("--patch-name", arguments->name, "The patch's name; default: the diff's")
      ->option_text("NAME");
  verb.add_option("--description", arguments->description, "One line about it")
      ->option_text("TEXT");
  several(verb.add_option("--cve", arguments->cves, "What it fixes; may be repeated"), "ID");
  several(verb.add_option("--keep-old", arguments->keep_old,
                          "A function that stays as it is although it changed; may be repeated"),
          "NAME");
  several(verb.add_option("--accept", arguments->accept,
                          "A type or variable whose change is harmless; may be repeated"),
          "NAME");
  verb.add_option("--callbacks", arguments->callbacks, "Hand-written callbacks, in C++")
      ->option_text("FILE");
  verb.add_option("COMMAND", arguments->command, "The build command, behind --")->required();
  return [arguments](const Options& options) { return build(*arguments, options); };
}

}  // namespace molt::cli
