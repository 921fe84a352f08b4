#include "builder/capture.hpp"

#include "base/fd.hpp"
#include "base/hash.hpp"
#include "builder/compiler_command.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <sstream>

extern "C" char** environ;

namespace molt::builder {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

const std::vector<std::string> shadow_options = {"-ffunction-sections",
                                                 "-fdata-sections",
                                                 "-fno-common",
                                                 "-fmerge-constants",
                                                 "-g",
                                                 "-w"};  // change no code

// Behind the user's own, where he has what would keep functions from the begin of their sections, or what
// they are made of from the object. Neither changes the code.
void add_remedies(const std::vector<std::string>& words, std::vector<std::string>& options) {
  const auto has = [&](std::string_view option) {
    return std::ranges::any_of(words, [&](const std::string& w) { return w.starts_with(option); });
  };
  if (has("-fpatchable-function-entry=")) options.push_back("-fpatchable-function-entry=0");
  if (has("-gsplit-dwarf")) options.push_back("-gno-split-dwarf");
}

std::string absolute(const std::string& directory, const std::string& path) {
  return (fs::path(directory) / path).lexically_normal().string();
}

// Waits for the command; its standard output and error go to `output`, or to ours if that is "".
// The status is waitpid's; -1 with errno if it could not be started.
int run(const std::vector<std::string>& words, const std::string& output) {
  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  if (!output.empty()) {
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC,
                                     0644);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
  }
  pid_t pid = -1;
  const int error =
      ::posix_spawnp(&pid, arguments[0], &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    errno = error;
    return -1;
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::string best;
  while (std::getline(file, line)) {
    if (best.empty() || (best.find("error") == best.npos && line.find("error") != line.npos)) {
      best = line;
    }
  }
  return best;
}

// The prerequisites of a make rule: "foo.o: foo.c a\ b.h \<newline> c.h". Rules without
// prerequisites (-MP) add nothing.
std::vector<std::string> read_dependencies(const std::string& path, const std::string& directory) {
  std::ifstream file(path);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::string> found;
  std::string word;
  bool in_prerequisites = false;
  const auto end_word = [&] {
    if (word.empty()) return;
    if (in_prerequisites) {
      // Hundreds for each source, and no tree's.
      const bool is_of_system = word.starts_with("/usr/include/") || word.starts_with("/usr/lib/");
      if (!is_of_system) found.push_back(absolute(directory, word));
    } else if (word.ends_with(':')) {
      in_prerequisites = true;
    }
    word.clear();
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const char next = i + 1 < text.size() ? text[i + 1] : '\0';
    if (c == '\\' && next == '\n') {
      end_word();
      ++i;
    } else if (c == '\\' && (next == ' ' || next == '#')) {
      word += next;
      ++i;
    } else if (c == '$' && next == '$') {
      word += '$';
      ++i;
    } else if (c == ' ' || c == '\t') {
      end_word();
    } else if (c == '\n') {
      end_word();
      in_prerequisites = false;
    } else {
      word += c;
    }
  }
  end_word();
  std::ranges::sort(found);
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

// gcc notes what a source includes where this tells it to. Not DEPENDENCIES_OUTPUT, which leaves system
// headers out: with it a <header> that is missing is a warning, and configure scripts find everything.
constexpr const char* note_variable = "SUNPRO_DEPENDENCIES";

// Programs that a build compiles only to see whether it can.
bool is_probe(const std::string& source, const std::string& output) {
  const auto has = [&](const char* part) {
    return source.find(part) != source.npos || output.find(part) != output.npos;
  };
  return has("conftest") || has("CMakeTmp") || has("CMakeScratch") || has("CompilerId") ||
         has("meson-private");
}

// A build may compile one source after the other to one place, and rename what comes of it. A source that is
// not there any more has been renamed itself.
void note_others(const std::string& path, Record& record) {
  std::ifstream file(path);
  const Json json = file ? Json::parse(file, nullptr, false) : Json();
  if (!json.is_object()) return;
  const std::string before = absolute(json.value("directory", ""), json.value("source", ""));
  std::error_code error;
  if (before == absolute(record.directory, record.source) || !fs::exists(before, error)) return;
  record.others = json.value("others", std::vector<std::string>{});
  if (std::ranges::find(record.others, before) == record.others.end()) {
    record.others.push_back(before);
  }
  for (const std::string& one : json.value("dependencies", std::vector<std::string>{})) {
    record.dependencies.push_back(one);
  }
}

bool write_record(const std::string& path, const Record& record) {
  const Json json = {{"source", record.source},
                     {"directory", record.directory},
                     {"command", record.command},
                     {"output", record.output},
                     {"plain", record.plain},
                     {"shadow", record.shadow},
                     {"shadow_error", record.shadow_error},
                     {"others", record.others},
                     {"dependencies", record.dependencies}};
  const std::string temporary = fmt::format("{}.{}", path, ::getpid());
  {
    std::ofstream file(temporary);
    file << json.dump(1, ' ', false, Json::error_handler_t::replace) << '\n';
    file.flush();
    if (!file) {
      ::unlink(temporary.c_str());
      return false;
    }
  }
  std::error_code error;
  fs::rename(temporary, path, error);
  return !error;
}

std::string stem_of(const std::string& store, const std::string& output) {
  return store + "/" + content_hash(std::as_bytes(std::span(output)));
}

constexpr const char* begun_ending = ".begun";

// The note that a compilation is under way. It is locked for as long as a process of the compiler lives,
// which may be longer than the build that was killed.
void note_begun(const std::string& stem, const std::string& output) {
  const int file = ::open((stem + begun_ending).c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
  if (file < 0) return;
  (void)::flock(file, LOCK_EX | LOCK_NB);
  (void)!::write(file, output.data(), output.size());
}

// Where the objects go that somebody sees.
std::vector<std::string> outputs_of(const CompilerCommand& command, const std::string& directory) {
  std::vector<std::string> outputs;
  if (command.makes_object_of_stdin() && !is_probe("", absolute(directory, command.output))) {
    outputs.push_back(absolute(directory, command.output));
  }
  std::vector<std::string> sources = command.sources;
  sources.insert(sources.end(), command.assembled.begin(), command.assembled.end());
  for (const std::string& source : sources) {
    const std::string object = command.object_of(source);
    if (object.empty() || is_probe(source, absolute(directory, object))) continue;
    outputs.push_back(absolute(directory, object));
  }
  return outputs;
}

// Where the build runs beside the tree: what it is told, and what is to be thought of it.
class Map {
 public:
  static Map read() {
    Map map;
    const char* text = std::getenv(capture::map_variable);
    std::istringstream lines(text != nullptr ? text : "");
    for (std::string line; std::getline(lines, line);) {
      const std::size_t equals = line.find('=');
      if (equals != line.npos) {
        map.pairs_.emplace_back(line.substr(0, equals), line.substr(equals + 1));
      }
    }
    return map;
  }
  std::string to_tree(const std::string& path) const {
    for (const auto& [copy, tree] : pairs_) {
      if (is_in(path, copy)) return tree + path.substr(copy.size());
    }
    return path;
  }
  bool is_of_tree(const std::string& path) const {
    return std::ranges::any_of(pairs_, [&](const auto& pair) { return is_in(path, pair.second); });
  }
  // Before the user's own: of two that fit, a compiler takes the last.
  std::vector<std::string> options() const {
    std::vector<std::string> options;
    for (const auto& [copy, tree] : pairs_) {
      options.push_back(fmt::format("-ffile-prefix-map={}={}", copy, tree));
    }
    return options;
  }

 private:
  static bool is_in(const std::string& path, const std::string& folder) {
    return path.starts_with(folder) && (path.size() == folder.size() || path[folder.size()] == '/');
  }
  std::vector<std::pair<std::string, std::string>> pairs_;
};

// 1, the compiler's answer to an error.
int refuse_tree(const std::string& path) {
  fmt::print(
      stderr,
      "molt: error: absolute paths need a mount namespace, and this one is not in the copy: {}\n",
      path);
  return 1;
}

// An object without a record would be one that the build does not make: its note stays, and the build ends.
bool cannot_keep(const std::string& output, const char* why) {
  fmt::print(stderr, "molt: error: what was compiled cannot be kept: {}: {}\n", output, why);
  return false;
}

// False: it includes a file that is the tree's own, or it cannot be kept.
bool record_one(const CompilerCommand& command, const std::vector<std::string>& user_words,
                const Map& map, const std::string& source, const std::string& directory,
                const std::string& store, bool with_shadow, const std::string& noted_dependencies) {
  Record record;
  record.source = map.to_tree(source);
  record.directory = map.to_tree(directory);
  record.command = user_words;
  const std::string object = command.object_of(source);
  record.output = map.to_tree(absolute(directory, object.empty() ? source + ".o" : object));
  if (is_probe(source, record.output)) return true;
  const std::string stem = stem_of(store, record.output);
  // Two compilations of one object at a time are the build's own mistake; their copies must not mix.
  const std::string own = fmt::format("{}.{}", stem, ::getpid());
  record.plain = stem + ".o";
  std::error_code error;
  if (object.empty()) {
    if (run(recompile(command, source, own, {}), own + ".log") != 0) return true;
    fs::remove(own + ".log", error);
  } else {
    const std::string made = absolute(directory, object);
    std::error_code ignored;
    fs::copy_file(made, own, fs::copy_options::overwrite_existing, error);
    if (error && !fs::is_regular_file(made, ignored)) return true;
    if (error) return cannot_keep(record.output, error.message().c_str());
  }
  fs::rename(own, record.plain, error);

  std::string dependencies = noted_dependencies;
  if (!command.dependencies.empty()) dependencies = absolute(directory, command.dependencies);
  if (with_shadow) {
    const std::string list = stem + ".d";
    record.shadow = stem + ".s.o";
    std::vector<std::string> options = shadow_options;
    add_remedies(command.words, options);
    options.insert(options.end(), {"-MD", "-MF", list});
    if (run(recompile(command, source, own, options), own + ".log") == 0) {
      fs::rename(own, record.shadow, error);
      dependencies = list;
    } else {
      record.shadow.clear();
      record.shadow_error = first_line(own + ".log");
    }
    fs::remove(own + ".log", error);
  }
  // clang notes nothing by itself.
  if (!with_shadow && !fs::exists(dependencies, error)) {
    dependencies = stem + ".d";
    (void)run(recompile(command, source, own, {"-M", "-MF", dependencies}), own + ".log");
    fs::remove(own + ".log", error);
  }
  if (!dependencies.empty()) record.dependencies = read_dependencies(dependencies, directory);
  record.dependencies.push_back(absolute(directory, source));
  for (std::string& path : record.dependencies) {
    if (map.is_of_tree(path)) return refuse_tree(path) == 0;
    path = map.to_tree(path);
  }
  note_others(stem + ".json", record);
  if (!write_record(stem + ".json", record)) {
    return cannot_keep(record.output, std::strerror(errno));
  }
  return true;
}

// Of standard input, and of an assembler source: what is there can be compared with the running program; more of
// it nobody has.
bool record_opaque(const CompilerCommand& command, const std::vector<std::string>& user_words,
                   const Map& map, const std::string& source, const std::string& directory,
                   const std::string& store, const std::string& noted_dependencies) {
  const std::string object = source == standard_input ? command.output : command.object_of(source);
  if (object.empty()) return true;
  Record record;
  record.source = source;
  record.directory = map.to_tree(directory);
  record.command = user_words;
  const std::string made = absolute(directory, object);
  record.output = map.to_tree(made);
  if (is_probe("", record.output)) return true;
  const std::string stem = stem_of(store, record.output);
  record.plain = stem + ".o";
  std::error_code error;
  fs::copy_file(made, record.plain, fs::copy_options::overwrite_existing, error);
  if (error) return cannot_keep(record.output, error.message().c_str());
  const std::string dependencies = !command.dependencies.empty()
                                       ? absolute(directory, command.dependencies)
                                       : noted_dependencies;
  if (!dependencies.empty()) record.dependencies = read_dependencies(dependencies, directory);
  if (source != standard_input) record.dependencies.push_back(absolute(directory, source));
  for (std::string& path : record.dependencies) path = map.to_tree(path);
  note_others(stem + ".json", record);
  if (!write_record(stem + ".json", record)) {
    return cannot_keep(record.output, std::strerror(errno));
  }
  return true;
}

}  // namespace

bool is_opaque(const Record& record) {
  return record.source == standard_input || is_assembler_source(record.source);
}

int run_captured_compiler(int argc, char** argv) {
  const char* store = std::getenv(capture::store_variable);
  const char* shadows = std::getenv(capture::shadows_variable);
  std::vector<std::string> words(argv + 1, argv + argc);
  ::setenv(capture::inside_variable, "1", 1);
  ::setenv("CCACHE_DISABLE", "1", 1);  // a compiler may be a link to it
  if (words.empty()) return 127;

  std::error_code error;
  const std::string directory = fs::current_path(error).string();
  const Map map = Map::read();
  const std::vector<std::string> user_words = read_command(words, directory).words;
  // In a compilation only: `cc --version` and the like say what they say.
  const CompilerCommand given = read_command(words, directory);
  if (store != nullptr && (given.makes_objects() || given.makes_opaque_objects())) {
    const auto options = map.options();
    words.insert(words.begin() + 1, options.begin(), options.end());
  }
  const CompilerCommand command = read_command(words, directory);
  const bool is_recorded =
      store != nullptr && (command.makes_objects() || command.makes_opaque_objects());
  std::string noted;
  const bool notes_itself = !is_recorded || !command.dependencies.empty() ||
                            std::getenv("DEPENDENCIES_OUTPUT") != nullptr ||
                            std::getenv(note_variable) != nullptr;
  if (!notes_itself) {
    noted = fmt::format("{}/{}.noted", store, ::getpid());
    ::setenv(note_variable, noted.c_str(), 1);
  }
  const std::vector<std::string> outputs =
      is_recorded ? outputs_of(command, directory) : std::vector<std::string>{};
  for (const std::string& output : outputs) {
    if (map.is_of_tree(output)) return refuse_tree(output);
    const std::string path = map.to_tree(output);
    note_begun(stem_of(store, path), path);
  }
  const int status = run(words, "");
  if (!notes_itself) ::unsetenv(note_variable);
  if (status == -1) {
    fmt::print(stderr, "{}: {}\n", words[0], std::strerror(errno));
    return errno == EACCES ? 126 : 127;
  }
  if (status == 0 && is_recorded) {
    const bool with_shadow = shadows != nullptr && *shadows == '1';
    std::vector<std::string> opaque = command.assembled;
    if (command.makes_object_of_stdin()) opaque.emplace_back(standard_input);
    for (const std::string& source : opaque) {
      if (!record_opaque(command, user_words, map, source, directory, store, noted)) return 1;
    }
    for (const std::string& source :
         command.makes_objects() ? command.sources : std::vector<std::string>{}) {
      if (!record_one(command, user_words, map, source, directory, store, with_shadow, noted))
        return 1;
    }
  }
  // A compiler that was killed has not cleared up: that is what the note is for.
  if (status >= 0 && WIFEXITED(status)) {
    for (const std::string& output : outputs) {
      fs::remove(stem_of(store, map.to_tree(output)) + begun_ending, error);
    }
  }
  if (!noted.empty()) fs::remove(noted, error);
  if (WIFSIGNALED(status)) {
    ::signal(WTERMSIG(status), SIG_DFL);
    ::raise(WTERMSIG(status));
    return 128 + WTERMSIG(status);
  }
  return WEXITSTATUS(status);
}

std::vector<std::string> read_begun(const std::string& store) {
  std::vector<std::string> outputs;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(store, error)) {
    if (entry.path().extension() != begun_ending) continue;
    const Fd held(::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC));
    while (held && ::flock(held.get(), LOCK_EX) != 0 && errno == EINTR) {
    }
    std::ifstream file(entry.path());
    outputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return outputs;
}

void remove_begun(const std::string& store) {
  std::error_code error;
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(store, error)) {
    if (entry.path().extension() == begun_ending) paths.push_back(entry.path());
  }
  for (const fs::path& path : paths) fs::remove(path, error);
}

Result<std::vector<Record>> read_records(const std::string& store) {
  std::vector<Record> records;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(store, error)) {
    if (entry.path().extension() != ".json") continue;
    std::ifstream file(entry.path());
    const Json json = Json::parse(file, nullptr, false);
    if (json.is_discarded()) {
      return fail(EIO, "%s is damaged: remove the folder, and build again", entry.path().c_str());
    }
    Record record;
    record.source = json.value("source", "");
    record.directory = json.value("directory", "");
    record.command = json.value("command", std::vector<std::string>{});
    record.output = json.value("output", "");
    record.plain = json.value("plain", "");
    record.shadow = json.value("shadow", "");
    record.shadow_error = json.value("shadow_error", "");
    record.others = json.value("others", std::vector<std::string>{});
    record.dependencies = json.value("dependencies", std::vector<std::string>{});
    records.push_back(std::move(record));
  }
  std::ranges::sort(records, {}, &Record::output);
  return records;
}

}  // namespace molt::builder
