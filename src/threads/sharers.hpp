// sharers.hpp - processes that are no threads of this one and yet run in its memory: a child of
// clone(CLONE_VM), of which a vfork child is the common kind. Inside threads/.
//
// Found are children that still are ours. A process that shares our memory and is not our child
// (CLONE_PARENT; a grandchild whose parent ended) is not found: nothing in /proc names it.
#pragma once

#include <sys/types.h>

#include <vector>

namespace molt::threads {

// Children that share this process's memory, or of which that cannot be told. One system call where
// there are no children; about 10 us for each process of the system otherwise. Any thread.
std::vector<pid_t> sharers();

}  // namespace molt::threads
