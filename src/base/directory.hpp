// directory.hpp - the process's own directory, DIRECTORY/molt/PID, in which its control socket and
// its copies of modules lie. docs/protocol.md says which DIRECTORY.
//
// Roles      Any thread asks for it; it is made at the first request. Processes of the same user
//            have theirs beside it, and clear away those of processes that died.
// State      On disk: the folder `molt` (or `molt-UID`), in it one folder for each process, in that
//            `owner` ("pidns=INODE start=TICKS"), `control` and `store/`.
// Invariants D1 No other user but root can create, rename or replace anything in the directory: the
//               two folders are real directories, ours, and writable by nobody else; what lies above
//               them belongs to root or us, and is writable by others only if it is sticky.
//            D2 Nothing is removed but what Molt itself puts there, and only when its process is
//               proven dead.
//            D3 Nothing is followed: all work is relative to descriptors of checked directories.
//            D4 The leak sanitizer reports after everything else, and reads the names of functions in
//               the copies of modules: where there is a sanitizer, and a copy, the directory is left
//               to those who come after.
// Death      fork: the child is another process, and makes a directory of its own when it needs one.
//            An orderly end removes the directory (remove_process_directory); after any other end
//            the next process of this user does.
// Refuses    A candidate that cannot be had as D1 says; then the next one is taken.
// Checked by tests/control/directory_test.cpp
#pragma once

#include <string>

#include "base/result.hpp"

namespace molt {

inline constexpr const char* control_socket_name = "control";

// `preferred`, if not empty, is the first candidate for DIRECTORY. Later calls give what the first
// one gave, unless somebody has removed it since: then another one is made. EACCES when no candidate is
// safe; the text has the reason for each.
[[nodiscard]] Result<std::string> process_directory(const std::string& preferred);

// At the orderly end of the process that made it; elsewhere, and in forked children, without effect.
void remove_process_directory();

// In a forked child. Without this the child still finds out by its different process id, unless it
// is the first process of a new pid namespace as its parent is of the outer one.
void forget_process_directory();

// Whether files below `path` may be mapped executable.
[[nodiscard]] bool allows_exec(const std::string& path);

}  // namespace molt
