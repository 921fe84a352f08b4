// patch.hpp - from units before and after a diff, and where the running files have them, to a patch
// file; or to all the reasons why there is none.
//
//     PatchOptions options;  options.name = "cve_2024_1";
//     auto patch = build_patch(units, placements, options);
//     if (!patch) for (const Refusal& r : patch.error()) ...
//     if (patch->report.functions.empty()) ... no functional change
//
// Roles      `molt build` calls it once everything is built and placed.
// Invariants B1 Whatever is bound to the running program's own state was proven by Placement; nothing
//               that has state is copied.
//            B2 A function that is replaced is entered through its old address by everybody, the
//               patch's own functions too: so later patches of it are seen by all.
//            B3 What cannot be shown to be safe is refused (P8), all of it at once.
// Refuses    unsafe.cpp, by construct.
// Checked by tests/builder/cases_test.cpp
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <tl/expected.hpp>

#include "builder/placement.hpp"
#include "builder/unit.hpp"

namespace molt::builder {

struct PatchOptions {
  std::string name;  // of the patch: [A-Za-z0-9_.-]
  std::string version, description, license;
  std::vector<std::string> cves;
  std::string author;                   // of the diff
  std::vector<std::string> signed_off;  // who answers for it
  std::vector<std::string>
      sources;       // "FILE HASH" of what the diff changes, before it; none: units'
  std::string diff;  // unified; tells edited lines from what moved with them
  std::vector<std::string> keep_old;   // functions that stay as they are although they changed
  std::vector<std::string> accept;     // types whose layout may change, data whose value may
  std::vector<std::string> additions;  // objects of --callbacks FILE.cpp
  bool has_copies = false;             // each target has its own copy of what it calls of them
  std::string runtime;                 // libmolt.so, whose functions new code may call; "": none
  bool replace = false;
};

struct PatchedFunction {
  std::string name;    // mangled
  std::string unit;    // Unit::output
  std::string target;  // the running file's name
  std::uint64_t old_size = 0, new_size = 0;
};
struct PatchReport {
  std::vector<PatchedFunction> functions;  // replaced; empty: no functional change
  std::vector<std::string> additions;      // functions and variables that the patch brings
  std::vector<std::string> notes;          // what the author should know
  std::size_t code_bytes = 0, data_bytes = 0;
};
struct BuiltPatch {
  std::vector<std::byte> bytes;
  PatchReport report;
};

// `placements`: one for each running file, all computed from these `units`.
[[nodiscard]] tl::expected<BuiltPatch, std::vector<Refusal>> build_patch(
    std::span<const Unit> units, std::span<const Placement* const> placements,
    const PatchOptions& options);

}  // namespace molt::builder
