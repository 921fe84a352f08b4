// flow.hpp - from a tree, a build command and a diff to a patch file: what `molt build` does.
//
//     copy the tree, build it                  once; later runs build what the user changed meanwhile
//     apply the diff, build                    new objects of the units that it touches
//     take it out, build                       old objects of the same units; the copy is clean again
//     place the old objects in the targets     placement.hpp
//     compare, refuse or write                 patch.hpp
//
// Roles      cli/verbs_build.cpp.
// Invariants F1 Each source of the diff that could be part of the target was compiled with it in, and
//               again without, and so was each unit that includes a file that the diff touches.
//            F2 Old and new objects differ by the diff alone: same command, same folder, same paths.
// Refuses    Nothing itself but what F1 finds; it collects what placement and patch refuse.
// Checked by tests/builder/build.sh
#pragma once

#include "builder/patch.hpp"
#include "builder/workspace.hpp"

#include <string>
#include <vector>

namespace molt::builder {

struct FlowTarget {
  std::string path;
  std::string debug_file;  // "": looked for by build-id
};

struct FlowRequest {
  WorkspaceOptions workspace;
  std::string diff;  // a path
  std::vector<FlowTarget> targets;
  PatchOptions patch;
  std::vector<std::string> leave_out;  // parts of the diff (leave_out.hpp)
  std::vector<std::string> beside;  // types whose new members lie beside their objects (beside.hpp)
  std::string callbacks;            // a C++ source to be compiled into the patch; "" for none
  std::string include;              // the folder with molt/livepatch.h, for the callbacks
  // One line for the user, as each step begins.
  std::function<void(const std::string&)> say;
};

struct FlowResult {
  BuiltPatch patch;  // no bytes: no functional change, or refused
  std::vector<Refusal> refusals;
  std::vector<std::string> notes;
  std::size_t units_compiled = 0;   // with the diff in
  std::size_t units_in_target = 0;  // of those
  // Of all units in a target: functions that are in it, and those of them that are byte for byte what
  // was compiled here (what differs is refused).
  std::size_t functions_compared = 0;
  std::size_t functions_proven = 0;
  double base_s = 0, new_s = 0, old_s = 0, compare_s = 0;
};

// Fails where a step could not be done (the build command, the diff); what is refused is in the result.
[[nodiscard]] Result<FlowResult> build_from_diff(const FlowRequest& request);

}  // namespace molt::builder
