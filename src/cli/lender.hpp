// lender.hpp - opens files of a process's threads that the process itself may not open.
//
// A process that gave up its privileges (memcached -u) may not look at its own threads any more: then
// nothing is proven there, and hooks, patches and unloads are refused. Root may: it opens the threads'
// `syscall` files and hands them over (threads/lent.hpp, docs/design/attach.md).
//
// The process need not be trusted. Of what it names only numbers are used; what is opened with root's
// rights is the file `syscall` of a thread and nothing else, wherever the process has put mounts and
// links: from the root of a /proc on, no mount is crossed and no link followed. Who reads such a file is
// asked by the kernel at each read.
#pragma once

#include "cli/client.hpp"

#include <functional>

namespace molt::cli {

// By the owner of its threads' files. False also where this program could not help: it is not root.
bool needs_loans(const Process& process);

// Until no thread is missing, or nothing more is taken. `ask` is the request molt.Lend to that process.
// What goes wrong is not told: the request that needs it tells what is missing.
void lend(const Process& process, const std::function<Json()>& ask);

}  // namespace molt::cli
