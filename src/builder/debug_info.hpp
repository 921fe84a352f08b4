// debug_info.hpp - what the compiler's debug information says of one object, as far as the builder
// needs it: static locals by scope, layouts of types, prototypes, what was inlined where.
//
// Read through libdwfl, which applies the object's relocations. An object without debug information has
// nothing of all this.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/result.hpp"

namespace molt::builder {

struct StaticLocal {
  std::uint32_t section = 0;  // where it lies in the object
  std::uint64_t offset = 0;
  std::string function;    // mangled
  std::string block;       // "0.2": the third block of the first
  std::string name, type;  // of a part that clang made a variable of its own: "name, bytes 4 to 7"
  std::string file;
  int line = 0;
};
struct TypeMember {
  std::string name, type;
  std::int64_t offset = 0;  // in bits; of an enumerator, its value
  int line = 0;
};
struct TypeLayout {
  // "struct", "union", "enum"; "typedef": its one member says of what; "enumerator": of an enum without a name, and
  // its one member has the value.
  std::string kind;
  std::string name;  // with its scope
  std::string file;
  int line = 0;
  std::uint64_t size = 0;
  std::vector<TypeMember> members;
};
// Lines of source that a function's code comes from.
struct SourceSpan {
  std::string function;  // itself, or one that was inlined
  std::string file;
  int first = 0, last = 0;
  bool has_code = false;  // lines of it were seen: `last` is the last of them
};
struct FunctionInfo {
  std::string name;       // mangled
  std::string prototype;  // "int (char const*, unsigned long)"
  std::string file;
  int line = 0;
  std::vector<SourceSpan> spans;  // of `main` only
};

struct DebugInfo {
  bool is_there = false;
  std::vector<StaticLocal> locals;
  std::vector<StaticLocal> variables;       // those of no function
  std::map<std::string, TypeLayout> types;  // by kind and name
  // What lambdas capture, in the order of the source, by the mangled function that they are in; "": none.
  std::map<std::string, std::vector<TypeLayout>> closures;
  std::map<std::string, FunctionInfo> functions;  // by mangled name; those with code
  // Where the unit's functions are in the source, and which files it is made of; where there is a `main`.
  std::vector<SourceSpan> bodies;
  std::set<std::string> files;

  [[nodiscard]] static Result<DebugInfo> read(const std::string& object_path);
};

}  // namespace molt::builder
