// case.hpp - one acceptance case: sources before and after, and what must come of them.
//
//     # why this case is there
//     # flags: -fno-inline                  for the compiler, beside the configuration's
//     # only: gcc program                   configurations that it is about
//     # run: 1=11 apply 1=21 revert 1=12    a number is given to step(), which answers
//     # refuse: data_changed table          instead of run: kind and symbol
//     # says: unit.c:3: table grew          these words, as the user reads them
//     # nothing                             instead: no functional change
//     # note: ripple                        a word of a note
//     # replaced: f g                       these functions of the program are led to new ones, and no others
//     # keep: main
//     == unit.c
//     static int f(void) {
//     -  return 1;
//     +  return 2;
//     }
//
// A file may have several units. Lines with - are before the diff only, with + after it only.
#pragma once

#include <string>
#include <vector>

namespace molt::patch_test {

struct Source {
  std::string name;
  std::string before, after;
  std::string diff;  // "" if nothing changes
  bool is_changed() const { return !diff.empty(); }
};
struct Case {
  std::string flags, only, run, refuse_kind, refuse_symbol, says, note, keep, accept, replaced;
  bool nothing = false;
  std::vector<Source> sources;
};

// Throws std::runtime_error for a file that is none.
Case read_case(const std::string& path);

}  // namespace molt::patch_test
