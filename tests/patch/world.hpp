// world.hpp - a case built by a compiler, running, patched.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "builder/patch.hpp"
#include "case.hpp"

namespace molt::patch_test {

struct Configuration {
  std::string compiler;  // "gcc" or "clang"
  std::string level;     // "-O2"
  std::string kind;      // "pie", "nopie", "library"
  std::string name() const { return compiler + level.substr(1, 2) + kind; }
};

// A folder of its own, gone with it.
class World {
 public:
  World(const Case& made, const Configuration& configuration);
  ~World();
  World(const World&) = delete;

  const std::string& folder() const { return folder_; }
  // Throws std::runtime_error with the compiler's words.
  void compile();
  tl::expected<builder::BuiltPatch, std::vector<builder::Refusal>> build();
  void write_patch(const std::vector<std::byte>& bytes);

  void start();
  std::string ask(const std::string& line);
  // The tool's exit code; its words in `said`.
  int molt(const std::vector<std::string>& arguments);
  // Mappings that are executable and of no file: what a patch leaves behind would be there.
  std::vector<std::string> anonymous_code() const;
  bool has_code_at(unsigned long address) const;
  std::string patch_path() const { return folder_ + "/fix.molt"; }
  pid_t pid() const { return pid_; }
  std::string said;

 private:
  void run(const std::string& command);
  std::string compiler_for(const Source& source) const;
  std::string flags() const;

  const Case& case_;
  Configuration configuration_;
  std::string folder_;
  std::vector<builder::Unit> units_;
  std::optional<builder::RunningFile> image_;
  std::optional<builder::Placement> placement_;
  std::string program_, target_, additions_;
  pid_t pid_ = 0;
  int to_ = -1, from_ = -1;
  std::string pending_;
};

}  // namespace molt::patch_test
