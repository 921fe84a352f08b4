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
  std::string function;            // mangled
  std::string block;               // "0.2": second block of the first
  std::string name, type;
  int line = 0;
};
struct TypeMember {
  std::string name, type;
  std::uint64_t offset = 0;  // in bits
  int line = 0;
};
struct TypeLayout {
  std::string kind;  // "struct", "union", "enum"
  std::string name;  // with its scope
  std::string file;
  int line = 0;
  std::uint64_t size = 0;
  std::vector<TypeMember> members;  // of an enum: values as offsets
};
struct FunctionInfo {
  std::string name;       // mangled
  std::string prototype;  // "int (char const *, unsigned long)"
  std::string file;
  int first_line = 0, last_line = 0;
  bool is_external = false;
  std::set<std::string> inlined;  // functions inlined into its code, at any depth
};

struct DebugInfo {
  bool is_there = false;
  std::vector<StaticLocal> statics;
  std::map<std::string, TypeLayout> types;        // by kind and name
  std::map<std::string, FunctionInfo> functions;  // by mangled name

  [[nodiscard]] static Result<DebugInfo> read(const std::string& object_path);
};

}  // namespace molt::builder
