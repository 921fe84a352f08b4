// tree.hpp - objects by path: which there are, and how one gets from a path to an attribute.
//
// The tree knows nothing of modules and hooks; what is in it is in content.cpp.
//
// Roles      Observers of modules add and remove; requests look.
// State      Objects that are kept, by path; folders whose children are made anew at every look.
// Invariants The tree has one count of each kept object, and leads to it by its path alone.
//            The lock is held for the map only: no show, store, release, or function of another
//            layer runs under it (O4).
// Progress   Nobody waits but for another's look at the map.
// Checked by tests/control/tree_test.cpp
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "control/object.hpp"

namespace molt::control {

// Children that nobody needs to be told of: the layer they belong to knows them by name, and says at
// every look whether they are there (Type::still_there).
struct Folder {
  const Type* type = nullptr;                     // of the children; null: no such folder
  std::vector<std::string> (*names)() = nullptr;  // of what the children are about
};

struct Node {
  enum Kind { object, attribute, link };
  std::string path;
  Kind kind;
  unsigned mode;
  bool has_value;  // an attribute that could be read
  std::string value;
  std::string target;  // of a link
};

class Tree {
 public:
  // What is there already under this path is removed first.
  void add(const Type& type, const std::string& path, const std::string& subject,
           const Folder& children = {});
  // With everything below. Waits for nobody (object.hpp).
  void remove(const std::string& path);

  [[nodiscard]] bool has(const std::string& path);
  // The paths of what is kept below it.
  [[nodiscard]] std::vector<std::string> below(const std::string& path);

  // Paths may begin and end with a slash; links are followed. ENOENT: nothing is there.
  [[nodiscard]] Result<Ref> open(std::string_view path);
  // May run module code. ENOENT: nothing is there; EISDIR: an object, not an attribute; else what
  // get_attribute() and set_attribute() answer.
  [[nodiscard]] Result<std::string> get(std::string_view path);
  [[nodiscard]] Status set(std::string_view path, const std::string& value);
  // The object, attribute or link at `path` and all below it, parents first. May run module code.
  [[nodiscard]] Result<std::vector<Node>> walk(std::string_view path);

 private:
  struct Kept {
    Ref object;
    Folder children;
  };
  // Where a path leads.
  struct Place {
    Ref object;
    std::string attribute;  // what may be one of the object; empty: the object itself
    std::string link;       // the path's last step was this link to it; empty: none
  };
  // Puts a parent first, then all below it, then its siblings.
  struct ByPath {
    bool operator()(const std::string& a, const std::string& b) const;
  };

  Result<Place> resolve(std::string_view path);
  Ref child(const std::string& parent, const std::string& name);
  std::vector<Kept> kept_from(const std::string& path);

  std::mutex mutex_;
  std::map<std::string, Kept, ByPath> kept_;
};

// A name as one step of a path: a slash becomes `!`, as in the kernel's object names.
[[nodiscard]] std::string path_name(std::string name);

}  // namespace molt::control
