// patch.hpp - what a patch consists of: the core's own copies, and the stacks of versions.
//
// A module's lists (include/molt/livepatch.h) are copied once, checked whole before anything is
// published, and never looked at again. A patch is counted: the list of installed patches holds one
// count, an operation on it another, the attributes that show it none (they ask by name). The last
// count releases it, and with it the reference on its module.
//
//   Patch 1 -- n Object 1 -- n Func            in the order of the module's lists
//   Site  1 -- n Func, newest first             one per original function that has versions
#pragma once

#include <molt/livepatch.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "elf/loaded.hpp"
#include "livepatch/site.hpp"

namespace molt::livepatch {

struct Object;
struct Patch;

// An original function that is known by its address, not by its name.
struct Placed {
  std::uintptr_t address = 0;
  std::uint64_t size = 0;
  std::vector<arch::CodeRange> parts;
};

struct Func {
  std::string name;
  unsigned long position = 0;         // as given; 0 and 1 are the same function
  std::uintptr_t address = 0;         // of the new function; 0 for a nop
  std::vector<arch::CodeRange> code;  // of the new function
  std::optional<Placed> placed;       // of a patch file: where the original is
  bool immediate = false;
  bool nop = false;  // of an atomic replacement: puts the original back
  Object* object = nullptr;

  // KERNEL.md P1.3: 00 -> 01 -> 11 -> 10 when patching, back when unpatching.
  bool patched = false;
  bool transition = false;
  Site* site = nullptr;  // while the object is loaded

  unsigned long shown_position() const { return position == 0 ? 1 : position; }
  bool same_function(const Func& other) const {
    return name == other.name && shown_position() == other.shown_position();
  }
};

// The loaded object that an Object stands for.
struct Binding {
  bool loaded = false;
  std::string module;  // the Molt module's name; "": the program or a plain library
  molt_module* descriptor = nullptr;
  elf::Range extent;  // all its pages
};

struct Object {
  std::string name;  // "": the program
  std::vector<std::unique_ptr<Func>> funcs;
  molt_patch_callbacks callbacks{};
  Patch* patch = nullptr;
  std::optional<elf::NamedObject> known;  // of a patch file: which object it is
  bool dynamic = false;                   // only nops
  Binding binding;
  unsigned life = 0;  // counts the bindings that have ended
  bool patched = false;
  bool post_patch_due = false;    // of the transition that is being completed
  bool post_unpatch_due = false;  // pre_patch has succeeded since the last post_unpatch

  bool is_program() const { return name.empty(); }
};

struct Patch {
  Patch() = default;
  ~Patch();  // the release: puts the reference on the module
  Patch(const Patch&) = delete;
  Patch& operator=(const Patch&) = delete;

  std::string name;  // of its module
  molt_module* module = nullptr;
  bool holds_module = false;
  bool replace = false;
  bool immediate = false;
  std::vector<std::unique_ptr<Object>> objects;
  std::vector<molt_patch_state*> states;

  bool enabled = false;
  bool forced = false;  // parts of it may be in use: no proof was asked for
  bool on_list = false;
  std::vector<std::string> watched;  // libraries that may come and go (loader_watch.hpp)

  bool has_immediate() const;
  bool has_libraries() const;  // objects beside the program
};
using PatchPtr = std::shared_ptr<Patch>;

// How messages and attributes call an object.
const std::string& display_name(const Object& object);

}  // namespace molt::livepatch
