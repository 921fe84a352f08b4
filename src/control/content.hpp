// content.hpp - what the tree of this process holds; docs/protocol.md lists it.
#pragma once

#include <string>

#include "control/tree.hpp"
#include "livepatch/engine.hpp"
#include "module/manager.hpp"

namespace molt::control {

// The tree of this process. Its modules' objects follow what observer() is told.
[[nodiscard]] Tree& tree();

// Adds and removes the objects of modules.
[[nodiscard]] const module::Observer& tree_observer();

// The same of livepatches.
[[nodiscard]] const livepatch::Observer& tree_patch_observer();

// What the process calls itself; by default the program's name.
void set_host_name(std::string name);
[[nodiscard]] std::string host_name();

// In a forked child: the tree is the parent's; the child makes its own at the first look.
void forget_tree();

}  // namespace molt::control
