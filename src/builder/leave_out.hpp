// leave_out.hpp - parts of a diff that stay out of the patch: a file, or what it does to one type.
//
// A type that programs have objects of keeps its definition, and the rest of the diff is compiled with it.
// Whether the rest means the same then only the author knows: a counter that becomes unsigned may be the
// fix, or a member that nobody reads, whose room is what a system call needed. So this is done where he says so,
// and never otherwise; what the diff does then is held to all that any diff is held to.
//
// Roles      flow.cpp, between applying the diff and building with it.
// Invariants L1 A definition stays whole: from its keyword to its brace, as the old file has it. What its
//               size depends on elsewhere (a macro) is of the diff, and is refused as a change of the layout.
//            L2 What cannot be found, or not told from another, is an error; nothing is left out by halves.
// Refuses    Names that the diff has nothing of; a diff of which nothing is left.
// Checked by tests/builder/leave_out_test.cpp, build_test.py
#pragma once

#include "builder/diff_file.hpp"

#include <string>
#include <vector>

namespace molt::builder {

// `what`: paths of files as the diff calls them, names of types. Changes the new texts alone; files of which
// nothing is left have their old one. A note for each.
[[nodiscard]] Result<std::vector<std::string>> leave_out(std::vector<PatchedFile>& files,
                                                         const std::vector<std::string>& what);

}  // namespace molt::builder
