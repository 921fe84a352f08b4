// capture.hpp - the wrapper in front of every compiler of a captured build, and the records that it
// leaves behind.
//
// The wrapper first does what the build asked for, with the very same words. Then it keeps a copy of
// each object (the plain one), and, when asked to, compiles the source once more with sections for each
// function and variable (the shadow). Whatever goes wrong with that is written down, and the build never
// sees it.
//
//     STORE/1f0c...json   what was compiled where, from which files
//     STORE/1f0c...o      the plain object
//     STORE/1f0c...s.o    the shadow
//     STORE/1f0c...begun  the object's path, while its compilation is under way
//
// Records have the tree's paths, also where the build runs in another place.
//
// One compilation, one record; the same object compiled again replaces it, so a store says what the
// last compilation of each object was. Parallel builds need no lock: every record is renamed into place.
#pragma once

#include "base/result.hpp"

#include <string>
#include <vector>

namespace molt::builder {

namespace capture {
inline constexpr const char* store_variable = "MOLT_CAPTURE_STORE";
inline constexpr const char* shadows_variable = "MOLT_CAPTURE_SHADOWS";  // "1": make shadows too
inline constexpr const char* wrapper_variable = "MOLT_CAPTURE_WRAPPER";
inline constexpr const char* inside_variable = "MOLT_CAPTURE_INSIDE";
// "COPY=TREE" lines, where the copy cannot be built in the tree's place (workspace.hpp, W4).
inline constexpr const char* map_variable = "MOLT_CAPTURE_MAP";
// What the preloaded library calls the wrapper: argv[0].
inline constexpr const char* program_name = "molt-capture";
}  // namespace capture

// A compilation as it was recorded.
struct Record {
  std::string source;     // as the compiler was told; "-": what was written to it, which is gone
  std::string directory;  // where it ran
  std::vector<std::string> command;
  std::string output;  // absolute
  std::string plain;   // absolute paths in the store
  std::string shadow;  // "": not asked for, or not possible
  std::string shadow_error;
  // Compiled before this one to the same place: of those no object is known.
  std::vector<std::string> others;
  std::vector<std::string> dependencies;  // absolute: the source and what it includes
};

inline constexpr const char* standard_input = "-";
// Its object can be compared, and cannot be had with sections for each function.
bool is_opaque(const Record& record);

// main() of the wrapper: argv[1] is the compiler. Returns what the compiler returned.
int run_captured_compiler(int argc, char** argv);

// All records of a store, in the order of their objects' paths.
[[nodiscard]] Result<std::vector<Record>> read_records(const std::string& store);
// Objects whose compilation has begun and has not ended: of a build that was killed. Waits for a compiler
// that has outlived it.
[[nodiscard]] std::vector<std::string> read_begun(const std::string& store);
void remove_begun(const std::string& store);

}  // namespace molt::builder
