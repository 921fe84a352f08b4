// compiler_command.hpp - what a command line of gcc or clang would compile, and how to have the same
// compiled once more to another place.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace molt::builder {

struct CompilerCommand {
  std::vector<std::string> words;      // the compiler first, response files expanded
  std::vector<std::string> sources;    // as written: what it compiles from C or C++
  std::vector<std::string> assembled;  // what it makes objects of from assembler
  std::string output;                  // of -o; "" for none
  std::string dependencies;            // where it writes a dependency file (-MD); "" for none
  bool compiles = false;               // -c; without it sources are compiled and linked in one go
  bool only_looks = false;             // -E, -S, -M, --version: makes no object
  bool reads_stdin = false;
  bool is_of_c = false;  // what it reads there

  // Does it make objects that a program may be linked of?
  bool makes_objects() const { return !sources.empty() && !only_looks && !reads_stdin; }
  // Does it make one of what somebody writes to it? Nobody can have that compiled once more.
  bool makes_object_of_stdin() const {
    return reads_stdin && is_of_c && compiles && !only_looks && !output.empty();
  }
  bool makes_opaque_objects() const {
    return makes_object_of_stdin() || (!assembled.empty() && compiles && !only_looks);
  }
  // Where the object of a source goes, relative to the compiler's folder; "" if nobody sees it, since
  // it is linked at once.
  std::string object_of(std::string_view source) const;
};

bool is_assembler_source(std::string_view path);

// `words`: the compiler and its arguments. Response files (@file) are read from `directory`.
CompilerCommand read_command(const std::vector<std::string>& words, const std::string& directory);

// The same compilation of one source, to `output`, with `extra` options behind the user's own, and
// without what would write other files (dependencies, saved temporaries).
std::vector<std::string> recompile(const CompilerCommand& command, std::string_view source,
                                   const std::string& output,
                                   const std::vector<std::string>& extra);

}  // namespace molt::builder
