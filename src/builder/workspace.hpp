// workspace.hpp - a copy of the user's source tree that is built instead of it, in the place of it.
//
// Where a tree lies ends up in what is compiled from it: __FILE__, the debug information's folders,
// absolute paths that configure scripts wrote down. So the build command runs in a mount namespace of
// its own, in which the copy lies where the user's tree is; nobody else sees that, and the user's tree
// stays as it was.
//
//     CACHE/<hash of tree and command>/
//         tree/      the copy, with what was built in it; tree.1/ ... of build folders beside it
//         state      "clean", or what is being done: "copying", "building", "patched"
//         manifest   size and time of each file of the user's tree when it was copied
//         undo       files that the diff is in, as they were without it
//         pending    what has to be compiled before the copy is clean again
//         base/ new/ old/   records and objects (capture.hpp), *.log what the build said
//
// Roles      flow.cpp; one builder at a time (a lock on the folder).
// Invariants W1 The user's tree and build folders are only read. An object that lies elsewhere is
//               refused after the first build, before the diff is in.
//            W2 A copy that is not "clean" is made so before it is used: the diff is taken out of it by
//               undo, an object whose compilation was broken off is removed (capture.hpp), and what
//               either concerns is compiled again whatever the build command makes of it. If the build
//               fails then, or there is no manifest yet, the copy is thrown away and made anew.
//            W3 All objects of the target that are made by the command were compiled under our eyes: what
//               the user had built in his tree is built again in a new copy.
// Death      Killed at any moment: W2; what was compiled until then is kept. The namespace goes with the
//            build's last process. A guard between the builder and the build ends all of that build's
//            processes when the builder is gone, and keeps the lock until then.
//            W4 Where no mount namespace is permitted the copy is built where it lies, and the compilers
//               are told to call it by the tree's name (-ffile-prefix-map). A build that would then reach
//               the tree itself by an absolute path is refused before a compiler writes there.
// Refuses    A cache inside of the tree; folders inside of each other; without a namespace, a build folder
//            of CMake's or Meson's, or a command with the tree's path.
// Checked by tests/builder/build_test.py
#pragma once

#include "base/fd.hpp"
#include "base/result.hpp"
#include "builder/capture.hpp"
#include "builder/diff_file.hpp"

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace molt::builder {

struct WorkspaceOptions {
  std::string source;  // absolute
  std::string cache;   // "": $XDG_CACHE_HOME/molt/builds or ~/.cache/molt/builds
  std::vector<std::string> build_folders;  // absolute; outside of `source`, copied like it
  std::string folder;                      // where the command runs: in one of these
  std::vector<std::string> command;
  std::string preload;  // libmolt-capture.so
  std::string wrapper;  // this program
  // Told about once a second while a build runs: how many compilations have been recorded.
  std::function<void(std::size_t)> progress;
};

class Workspace {
 public:
  // Copies the tree, or brings an earlier copy up to date.
  [[nodiscard]] static Result<Workspace> open(WorkspaceOptions options);

  const std::string& tree() const { return tree_; }
  const std::string& source() const { return options_.source; }
  // Of records and logs; "base", "new", "old".
  std::string folder_of(std::string_view phase) const { return folder_ + "/" + std::string(phase); }
  std::string log(std::string_view phase) const { return folder_of(phase) + ".log"; }
  // Is the path in what was copied?
  bool is_in_copy(const std::string& path) const;
  // The disc has no room: what was compiled may not have been kept.
  bool is_full() const;
  // Was this copy built before, with the same command?
  bool is_warm() const { return is_warm_; }
  // Is it built in the tree's place? W4
  bool is_in_place() const { return is_in_place_; }
  // Was a run on it broken off, whose work this one goes on with?
  bool is_resumed() const { return is_resumed_; }
  // Files of the user's that an earlier copy had, and had otherwise; what a broken-off run had the diff in.
  const std::vector<std::string>& changed() const { return changed_; }
  // Objects whose compilation was broken off.
  const std::vector<std::string>& lost() const { return lost_; }
  // Throws the copy away.
  [[nodiscard]] Status begin_anew();

  // Clean again only after all that was pending is compiled.
  [[nodiscard]] Status mark(std::string_view state);
  // The diff is about to be put into these files.
  [[nodiscard]] Status mark_patched(const std::vector<PatchedFile>& files);
  // Runs the build command. Records of earlier runs of that phase are kept where `keep` says so. A
  // command that fails is EIO, with the end of what it said.
  [[nodiscard]] Status build(std::string_view phase, bool with_shadows, bool keep);
  // Compiles again what was recorded, from the sources as they are now, with shadows; for objects that
  // the build command leaves alone since it does not know what they depend on.
  [[nodiscard]] Status compile_again(std::string_view phase, const std::vector<Record>& records);
  // Any other command, where the build would run it; what it says is in log(phase).
  [[nodiscard]] Status run_beside(std::string_view phase, const std::vector<std::string>& words,
                                  const std::string& folder);

 private:
  Workspace() = default;
  Status copy_all();
  bool resume(std::string_view state);
  void forget_broken_off();
  std::string copy_of(std::size_t index) const;
  // Where the path is to be found by who is not in the namespace.
  std::string in_copy(const std::string& path) const;
  Status check_elsewhere() const;
  struct Job {
    std::string program;
    std::vector<std::string> words;
    std::string folder;
    std::string log;
  };
  [[noreturn]] void become(const Job& job, std::string_view phase, bool with_shadows,
                           int error_fd) const;
  Status run(const Job& job, std::string_view phase, bool with_shadows);

  WorkspaceOptions options_;
  std::string folder_;
  std::string tree_;
  std::vector<std::string> folders_;  // the source tree first
  std::vector<std::string> changed_;
  std::vector<std::string> lost_;
  Fd lock_;
  bool is_warm_ = false;
  bool is_resumed_ = false;
  bool is_in_place_ = true;
};

}  // namespace molt::builder
