// process.hpp - what /proc tells of a process without asking it, and where its control socket is.
//
// The socket's directory is chosen by the process (docs/protocol.md), in its own mount and pid
// namespaces. It is looked for in this order, below /proc/PID/root:
//   1. $MOLT_DIRECTORY and $XDG_RUNTIME_DIR as in /proc/PID/environ, where that may be read
//   2. /run, /run/user/UID, /tmp, and this program's own $MOLT_DIRECTORY
//   3. the names that the kernel lists in /proc/PID/net/unix, which know of any other directory, of
//      directories that this user may not open, and of sockets that have no path
#pragma once

#include "base/fd.hpp"

#include <sys/types.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace molt::cli {

struct Process {
  int pid = 0;        // as this program sees it
  int inner_pid = 0;  // as it sees itself
  int parent = 0;
  uid_t uid = 0;  // effective
  char state = '?';
  std::string comm;
};

// Nothing if there is no such process (any more). The id of a thread gives its process.
std::optional<Process> find_process(int pid);
std::vector<int> list_pids();
// Name of a user, or its number.
std::string user_name(uid_t uid);

struct ControlSocket {
  enum State {
    found,    // node is open (O_PATH), or there are names
    absent,   // none anywhere
    denied,   // there is one, for others
    unknown,  // this process's files may not be looked at
  };
  State state = absent;
  Fd node;
  // Of abstract sockets that could be it, in the network namespace of that process.
  std::vector<std::string> names;
};

// Nobody listens there: an earlier process of that number has left it, or the process itself before it executed
// another program.
bool is_left_behind(const ControlSocket& socket);

// Without a socket, but with the runtime and modules mapped: the child of a fork, which has its
// parent's modules and patches in force and no thread that could answer for them.
bool has_inherited(const Process& process);

// Whether the runtime's threads are there.
bool has_own_threads(const Process& process);

// Remembers what it read for the next process.
class SocketFinder {
 public:
  ControlSocket find(const Process& process);

 private:
  const std::vector<std::string>& listening(const Process& process);
  std::map<std::string, std::vector<std::string>> listening_;  // by network namespace
};

}  // namespace molt::cli
