#include "builder/compiler_command.hpp"

#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>

namespace molt::builder {
namespace {

// Options whose argument may be the next word, which then is no source.
constexpr std::array<std::string_view, 45> with_argument = {"-I",           "-D",
                                                            "-U",           "-L",
                                                            "-l",           "-T",
                                                            "-u",           "-z",
                                                            "-e",           "-B",
                                                            "-A",           "-x",
                                                            "-o",           "-MF",
                                                            "-MT",          "-MQ",
                                                            "-include",     "-imacros",
                                                            "-isystem",     "-iquote",
                                                            "-idirafter",   "-iprefix",
                                                            "-iwithprefix", "-iwithprefixbefore",
                                                            "-isysroot",    "-imultilib",
                                                            "--sysroot",    "--param",
                                                            "-Xclang",      "-Xassembler",
                                                            "-Xlinker",     "-Xpreprocessor",
                                                            "-aux-info",    "-arch",
                                                            "-target",      "-dumpbase",
                                                            "-dumpdir",     "-dumpbase-ext",
                                                            "-wrapper",     "-specs",
                                                            "-mllvm",       "-framework",
                                                            "-rpath",       "-soname",
                                                            "-include-pch"};

constexpr std::array<std::string_view, 12> source_endings = {
    ".c", ".cc", ".cp", ".cxx", ".cpp", ".CPP", ".c++", ".C", ".i", ".ii", ".m", ".mm"};

bool is_source(std::string_view word) {
  return std::ranges::any_of(source_endings,
                             [word](std::string_view ending) { return word.ends_with(ending); });
}

}  // namespace

bool is_assembler_source(std::string_view path) {
  return path.ends_with(".S") || path.ends_with(".s") || path.ends_with(".sx");
}

namespace {

std::string_view base_name(std::string_view path) {
  const std::size_t slash = path.rfind('/');
  return slash == path.npos ? path : path.substr(slash + 1);
}

std::string_view without_ending(std::string_view name) {
  const std::size_t dot = name.rfind('.');
  return dot == name.npos || dot == 0 ? name : name.substr(0, dot);
}

// The words of a response file: separated by white space, quoted or escaped as in gcc's manual.
std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> words;
  std::string word;
  bool in_word = false;
  char quote = '\0';
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\\' && i + 1 < text.size()) {
      word += text[++i];
      in_word = true;
    } else if (quote != '\0') {
      if (c == quote) {
        quote = '\0';
      } else {
        word += c;
      }
    } else if (c == '"' || c == '\'') {
      quote = c;
      in_word = true;
    } else if (c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v') {
      if (in_word) words.push_back(std::move(word));
      word.clear();
      in_word = false;
    } else {
      word += c;
      in_word = true;
    }
  }
  if (in_word) words.push_back(std::move(word));
  return words;
}

void expand(const std::vector<std::string>& words, const std::string& directory, int depth,
            std::vector<std::string>& to) {
  for (const std::string& word : words) {
    if (word.size() > 1 && word[0] == '@' && depth < 8) {
      const std::string name = word.substr(1);
      std::ifstream file(name[0] == '/' ? name : directory + "/" + name);
      if (file) {
        const std::string text{std::istreambuf_iterator<char>(file), {}};
        expand(split(text), directory, depth + 1, to);
        continue;
      }
    }
    to.push_back(word);
  }
}

bool takes_next(std::string_view word) {
  return std::ranges::find(with_argument, word) != with_argument.end();
}

// Options about files beside the object, and those that say what to make of the source.
bool is_left_out(std::string_view word) {
  return word == "-c" || word == "-M" || word == "-MM" || word == "-MD" || word == "-MMD" ||
         word == "-MP" || word == "-MG" || word == "-MV" || word.starts_with("-Wp,-M") ||
         word.starts_with("-save-temps") || word == "--coverage" || word == "-shared" ||
         word == "-pipe" || word == "-ftime-trace" || word.starts_with("-ftime-trace=");
}

}  // namespace

std::string CompilerCommand::object_of(std::string_view source) const {
  if (!compiles) return "";
  if (!output.empty()) return output;
  return std::string(without_ending(base_name(source))) + ".o";
}

CompilerCommand read_command(const std::vector<std::string>& words, const std::string& directory) {
  CompilerCommand command;
  if (words.empty()) return command;
  command.words.push_back(words[0]);
  expand({words.begin() + 1, words.end()}, directory, 0, command.words);
  bool wants_dependencies = false;
  std::string language;
  for (std::size_t i = 1; i < command.words.size(); ++i) {
    const std::string& word = command.words[i];
    const bool has_next = i + 1 < command.words.size();
    if (word == "-") {
      command.reads_stdin = true;
      command.is_of_c = language == "c" || language == "c++" || language == "cpp-output" ||
                        language == "c++-cpp-output";
    } else if (word == "-c") {
      command.compiles = true;
    } else if (word == "-E" || word == "-S" || word == "-M" || word == "-MM" ||
               word == "-fsyntax-only" || word == "--version" || word == "-###" ||
               word == "-dumpversion" || word == "-dumpmachine" || word.starts_with("-print-")) {
      command.only_looks = true;
    } else if (word == "-MD" || word == "-MMD") {
      wants_dependencies = true;
    } else if (word.starts_with("-Wp,-MD,") || word.starts_with("-Wp,-MMD,")) {
      command.dependencies = word.substr(word.find(',', 4) + 1);
    } else if (word.starts_with("-o") && word.size() > 2) {
      command.output = word.substr(2);
    } else if (word.starts_with("-MF") && word.size() > 3) {
      command.dependencies = word.substr(3);
    } else if (word.starts_with("-x") && word.size() > 2) {
      language = word.substr(2);
    } else if (takes_next(word) && has_next) {
      const std::string& next = command.words[++i];
      if (word == "-o") command.output = next;
      if (word == "-MF") command.dependencies = next;
      if (word == "-x") language = next;
    } else if (word[0] != '-' && language != "none" && !language.empty()) {
      if (language == "c" || language == "c++") command.sources.push_back(word);
    } else if (!word.empty() && word[0] != '-' && is_source(word)) {
      command.sources.push_back(word);
    } else if (!word.empty() && word[0] != '-' && is_assembler_source(word)) {
      command.assembled.push_back(word);
    }
  }
  if (wants_dependencies && command.dependencies.empty() && !command.sources.empty()) {
    std::string stem = command.output;
    if (stem.empty()) stem = std::string(base_name(command.sources[0]));
    const std::size_t slash = stem.rfind('/');
    const std::size_t dot = stem.rfind('.');
    const bool has_dot = dot != stem.npos && (slash == stem.npos || dot > slash);
    command.dependencies = stem.substr(0, has_dot ? dot : stem.size()) + ".d";
  }
  return command;
}

std::vector<std::string> recompile(const CompilerCommand& command, std::string_view source,
                                   const std::string& output,
                                   const std::vector<std::string>& extra) {
  std::vector<std::string> words = {command.words[0]};
  for (std::size_t i = 1; i < command.words.size(); ++i) {
    const std::string& word = command.words[i];
    if (is_left_out(word)) continue;
    const bool has_next = i + 1 < command.words.size();
    if (word == "-o" || word == "-MF" || word == "-MT" || word == "-MQ" || word == "-l" ||
        word == "-Xlinker" || word == "-L") {
      if (has_next) ++i;
      continue;
    }
    if (word.starts_with("-MF") || word.starts_with("-MT") || word.starts_with("-MQ") ||
        (word.starts_with("-o") && word.size() > 2) || word.starts_with("-Wl,") ||
        word.starts_with("-l") || word.starts_with("-L")) {
      continue;
    }
    if (takes_next(word) && has_next) {
      words.push_back(word);
      words.push_back(command.words[++i]);
      continue;
    }
    // Other sources, objects and archives of a command that links at once.
    if (!word.empty() && word[0] != '-' && word != source) continue;
    if (word == source) continue;
    words.push_back(word);
  }
  words.insert(words.end(), extra.begin(), extra.end());
  words.insert(words.end(), {"-c", "-o", output, std::string(source)});
  return words;
}

}  // namespace molt::builder
