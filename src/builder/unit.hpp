// unit.hpp - one source file of the program as the user's build compiles it, before and after the
// diff: what the capture hands to everything behind it.
//
// Of each state of the sources there are two objects. The *plain* one is what the user's own command
// makes, byte for byte: it proves that these sources are the running program's. The *shadow* has each
// function and variable in a section of its own (-ffunction-sections -fdata-sections -fno-common
// -fmerge-constants) and the very same code: it is compared, and cut up for the patch.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace molt::builder {

// Absolute paths of ET_REL files; both empty where the unit does not exist in that state.
struct Objects {
  std::string plain;
  std::string shadow;

  bool exist() const { return !plain.empty(); }
};

struct Unit {
  std::string source;                // as the compiler was told, from `directory`
  std::string directory;             // where the compiler ran
  std::vector<std::string> command;  // the user's, the compiler first
  std::string output;                // where the user's build has the object; its name in messages
  Objects old_objects;               // without the diff; none: the diff adds this source file
  Objects new_objects;               // with the diff; none: the diff does not touch it

  bool is_new() const { return !old_objects.exist(); }
  bool is_changed() const { return new_objects.exist(); }
};

// Something that cannot be patched safely, or not be told. All of them are collected before the
// builder gives up, and each is one line for the user: what, where, why, what to do.
struct Refusal {
  std::string kind;    // a stable word for JSON and tests: "lto", "bytes_differ", "layout_changed"
  std::string unit;    // Unit::output, or empty
  std::string symbol;  // mangled, or empty
  std::string where;   // "FILE:LINE", or empty
  std::string text;    // what and why, with A -> B where something changed
  std::string advice;  // what the author can do; may be empty
};

}  // namespace molt::builder
