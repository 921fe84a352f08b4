// `molt build`: a source tree, a build command and a diff in, a patch file out.

#include "base/fd.hpp"
#include "builder/capture.hpp"
#include "builder/diff_header.hpp"
#include "builder/flow.hpp"
#include "cli/agent.hpp"
#include "cli/print.hpp"
#include "cli/verbs.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>

namespace molt::cli {
namespace {

namespace fs = std::filesystem;

struct BuildArguments {
  std::string diff;
  std::vector<std::string> targets;
  std::vector<std::string> debug_files;
  std::string source;
  std::vector<std::string> build_folders;
  std::string output;
  std::string name;
  std::string description;
  std::vector<std::string> cves;
  std::vector<std::string> signed_off;
  std::vector<std::string> keep_old;
  std::vector<std::string> accept;
  std::vector<std::string> leave_out;
  std::vector<std::string> beside;
  std::string callbacks;
  std::vector<std::string> command;
};

std::string existing(const std::string& path, const char* what, bool is_folder = false) {
  std::error_code error;
  const fs::path found = fs::canonical(path, error);
  if (error) {
    fail(class_of_errno(error.value()), error.value(), "{} {}: {}", what, path, error.message());
  }
  if (fs::is_directory(found, error) != is_folder) {
    fail(ErrorClass::usage, is_folder ? ENOTDIR : EISDIR, "{} {} is {}", what, path,
         is_folder ? "no folder" : "a folder");
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

// As installed, or in the source tree that this was built from.
std::string include_folder() {
  const fs::path here = fs::read_symlink("/proc/self/exe").parent_path();
  std::error_code error;
  for (const char* folder : {"../include", "../../include", "../../../include"}) {
    const fs::path path = here / folder;
    if (fs::exists(path / "molt/livepatch.h", error)) return fs::canonical(path).string();
  }
  fail(ErrorClass::missing, ENOENT, "molt/livepatch.h is not where this program was installed");
}

// A name may have letters, digits and -._ only.
std::string as_name(std::string name) {
  for (char& c : name) {
    const bool is_plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                          (c >= 'A' && c <= 'Z') || c == '-' || c == '_' || c == '.';
    if (!is_plain) c = '_';
  }
  constexpr std::size_t bytes_max = 48;
  return name.substr(0, bytes_max);
}

// "fixes/CVE-2024-1.patch" -> "CVE-2024-1"
std::string name_of(const std::string& diff) {
  std::string name = fs::path(diff).filename().string();
  for (const char* ending : {".patch", ".diff"}) {
    if (name.ends_with(ending)) name.resize(name.size() - std::string_view(ending).size());
  }
  return as_name(std::move(name));
}

bool is_inside(const std::string& path, const std::string& folder) {
  return path == folder || path.starts_with(folder + "/");
}

// Where a build folder of CMake's says that its sources are; "" for another folder.
std::string source_of_build_folder(const fs::path& folder) {
  std::ifstream file(folder / "CMakeCache.txt");
  constexpr std::string_view key = "CMAKE_HOME_DIRECTORY:INTERNAL=";
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(key)) return line.substr(key.size());
  }
  return "";
}

// Is this what a configure step leaves: a folder that a build command writes into?
bool is_build_folder(const fs::path& folder) {
  std::error_code error;
  return std::ranges::any_of(
      std::array{"CMakeCache.txt", "build.ninja", "config.status", "meson-info"},
      [&](const char* name) { return fs::exists(folder / name, error); });
}

// Those that are named, and those that the command is run in or told of, outside of the source tree.
std::vector<std::string> build_folders_of(const BuildArguments& arguments,
                                          const std::string& source) {
  std::vector<std::string> folders;
  const auto add = [&](const std::string& folder) {
    if (is_inside(folder, source)) return;
    if (std::ranges::find(folders, folder) == folders.end()) folders.push_back(folder);
  };
  for (const std::string& folder : arguments.build_folders) {
    add(existing(folder, "the build folder", true));
  }
  std::vector<std::string> words = arguments.command;
  words.emplace_back(".");
  for (std::string& word : words) {
    for (const char* option : {"-C", "-B"}) {
      if (word.starts_with(option) && word.size() > 2) word.erase(0, 2);
    }
    std::error_code error;
    const fs::path folder = fs::canonical(word, error);
    if (error || !fs::is_directory(folder, error) || !is_build_folder(folder)) continue;
    if (!is_inside(source, folder.string())) add(folder.string());
  }
  return folders;
}

// The command runs where the user stands, if that is in what is copied.
std::string folder_of_build(const builder::WorkspaceOptions& workspace) {
  const std::string here = fs::current_path().string();
  const auto holds = [&](const std::string& folder) { return is_inside(here, folder); };
  return holds(workspace.source) || std::ranges::any_of(workspace.build_folders, holds)
             ? here
             : workspace.source;
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
          {"functions_compared", result.functions_compared},
          {"functions_proven", result.functions_proven},
          {"base_s", result.base_s},
          {"new_s", result.new_s},
          {"old_s", result.old_s},
          {"compare_s", result.compare_s}};
}

[[noreturn]] void cannot_write(const std::string& path, int code) {
  fail(class_of_errno(code), code, "cannot write {}: {}", path, std::strerror(code));
}

bool is_special(const std::string& path) {
  std::error_code error;
  const auto type = fs::status(path, error).type();
  return type != fs::file_type::not_found && type != fs::file_type::regular;
}

// Renamed into place: a reader never sees half a patch, and an older one stays if this fails. What is no
// file (/dev/stdout) is written to.
void write_whole(const std::string& path, const std::vector<std::byte>& bytes) {
  const bool is_direct = is_special(path);
  const std::string temporary = is_direct ? path : fmt::format("{}.{}", path, ::getpid());
  const auto give_up = [&](int code) {
    if (!is_direct) ::unlink(temporary.c_str());
    cannot_write(path, code);
  };
  Fd file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (!file) cannot_write(path, errno);
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t n = ::write(file.get(), bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno != EINTR) give_up(errno);
    if (n > 0) done += static_cast<std::size_t>(n);
  }
  if (!is_direct && ::fsync(file.get()) != 0) give_up(errno);
  file.reset();
  if (!is_direct && ::rename(temporary.c_str(), path.c_str()) != 0) give_up(errno);
}

// Before minutes of building, not behind them.
void check_output(const std::string& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) cannot_write(path, EISDIR);
  const fs::path folder = fs::path(path).parent_path();
  if (::access(folder.empty() ? "." : folder.c_str(), W_OK) != 0) cannot_write(path, errno);
}

builder::FlowRequest request_of(const BuildArguments& arguments, const Options& options) {
  if (!arguments.name.empty() && as_name(arguments.name) != arguments.name) {
    fail(ErrorClass::usage, EINVAL,
         "build: the name {} has something else than letters, digits and -._, or more than 48",
         arguments.name);
  }
  builder::FlowRequest request;
  request.diff = existing(arguments.diff, "the diff");
  std::string source = arguments.source;
  if (source.empty()) source = source_of_build_folder(".");
  request.workspace.source = existing(source.empty() ? "." : source, "the source tree", true);
  request.workspace.build_folders = build_folders_of(arguments, request.workspace.source);
  request.workspace.folder = folder_of_build(request.workspace);
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
  std::ifstream diff(request.diff, std::ios::binary);
  const std::string diff_text{std::istreambuf_iterator<char>(diff), {}};
  builder::DiffHeader header =
      builder::read_diff_header(diff_text, fs::path(request.diff).filename().string());
  request.patch.description =
      arguments.description.empty() ? header.description : arguments.description;
  request.patch.cves = arguments.cves.empty() ? header.cves : arguments.cves;
  request.patch.author = header.author;
  request.patch.signed_off = std::move(header.signed_off);
  for (const std::string& name : arguments.signed_off) {
    request.patch.signed_off.push_back(name);
  }
  request.patch.keep_old = arguments.keep_old;
  request.patch.accept = arguments.accept;
  request.leave_out = arguments.leave_out;
  request.beside = arguments.beside;
  request.patch.runtime = runtime_path();
  if (!arguments.callbacks.empty()) {
    request.callbacks = existing(arguments.callbacks, "the callbacks");
  }
  if (!arguments.callbacks.empty() || !arguments.beside.empty()) request.include = include_folder();
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
        "{} units compiled, {} of them in the target; {} of {} functions are byte for byte those "
        "of the "
        "running file\n"
        "base {:.1f} s, new {:.1f} s, old {:.1f} s, "
        "comparing {:.2f} s\n",
        result.units_compiled, result.units_in_target, result.functions_proven,
        result.functions_compared, result.base_s, result.new_s, result.old_s, result.compare_s);
  }
  return text + fmt::format("{}: {} function{}, {} bytes\n", output,
                            result.patch.report.functions.size(),
                            result.patch.report.functions.size() == 1 ? "" : "s",
                            result.patch.bytes.size());
}

int build(const BuildArguments& arguments, const Options& options) {
  const builder::FlowRequest request = request_of(arguments, options);
  const std::string output =
      arguments.output.empty() ? request.patch.name + ".molt" : arguments.output;
  if (!options.dry_run) check_output(output);
  auto result = builder::build_from_diff(request);
  if (!result) {
    const int code = result.error().code;
    const bool is_refused = code == EALREADY || code == EILSEQ;
    // What the system did not do, it says why.
    constexpr std::array of_system{ENOSPC, EDQUOT, EACCES, EROFS,
                                   ENOMEM, EMFILE, ENFILE, ENAMETOOLONG};
    std::string text(result.error().detail);
    const std::string why = std::strerror(code);
    if (std::ranges::find(of_system, code) != of_system.end() && !text.ends_with(why)) {
      text += ": " + why;
    }
    fail(is_refused ? ErrorClass::refused : class_of_errno(code), code, "{}", text);
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
  several(verb.add_option("--build-folder", arguments->build_folders,
                          "A folder outside of the source tree that is built in; may be repeated"),
          "DIR");
  verb.add_option("-o,--output", arguments->output, "The patch file; default: NAME.molt")
      ->option_text("FILE");
  verb.add_option("--patch-name", arguments->name, "The patch's name; default: the diff's")
      ->option_text("NAME");
  verb.add_option("--description", arguments->description, "One line about it")
      ->option_text("TEXT");
  several(verb.add_option("--cve", arguments->cves, "What it fixes; may be repeated"), "ID");
  several(verb.add_option(
              "--signed-off-by", arguments->signed_off,
              "Who answers for the patch, beside those whom the diff names; may be repeated"),
          "NAME <MAIL>");
  several(verb.add_option("--keep-old", arguments->keep_old,
                          "A function that stays as it is although it changed; may be repeated"),
          "NAME");
  several(verb.add_option("--accept", arguments->accept,
                          "A type or variable whose change is harmless; may be repeated"),
          "NAME");
  several(verb.add_option("--leave-out", arguments->leave_out,
                          "A file of the diff, or a type, that stays as it is; may be repeated"),
          "NAME");
  several(verb.add_option("--beside", arguments->beside,
                          "A struct whose new members lie beside its objects, 0 for those that "
                          "exist; may be repeated"),
          "TYPE");
  verb.add_option("--callbacks", arguments->callbacks, "Hand-written callbacks, in C++")
      ->option_text("FILE");
  verb.add_option("COMMAND", arguments->command, "The build command, behind --")->required();
  return [arguments](const Options& options) { return build(*arguments, options); };
}

}  // namespace molt::cli
