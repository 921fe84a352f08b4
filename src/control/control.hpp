// control.hpp - what the rest of the runtime knows of control: looking at the process and asking it
// for operations from outside, over a socket (docs/protocol.md).
//
//     request.hpp, methods.cpp   what can be asked, and what that does
//     object.hpp, tree.hpp       what can be looked at, and how long it lives
//     server.hpp                 who reads, who waits, who works
//
// Use it where other processes shall see and change this one. A process that only loads modules for
// itself needs nothing of this.
//
// Costs: two threads asleep ("molt", "molt-worker"), in a host that may stop() it also "molt-bell"; none
// of the host's descriptors, about 100 KiB; a request 20 to 60 us.
#pragma once

#include <string>

#include "base/result.hpp"
#include "livepatch/engine.hpp"
#include "module/manager.hpp"

namespace molt::control {

// After so long without a question an agent sleeps again with what it needs to be asked.
inline constexpr int agent_idle_ms = 3'000;

struct Options {
  std::string name;       // empty: the program's
  std::string directory;  // for the socket; empty: chosen (base/directory.hpp)
  int delay_release_ms = 0;
  bool is_agent = false;  // put in from outside: ends by leave() alone
};

// Any thread; the descriptor table of the calling one is that of modules which are loaded from
// outside. Waits until the socket can be connected to. EALREADY: running. EBUSY: stop() is under
// way. On any failure nothing is left, and it may be tried again. Where it runs already and somebody has removed
// the socket, that is made anew; ENOTCONN as Server::mend() has it.
[[nodiscard]] Status start(const Options& options);

// Any thread but a worker's (module code that was asked for from outside), and no agent's server: there it
// does nothing but log that. Cancels what waits, then waits for operations under way. Handles and connections are gone.
void stop();

// As stop(), asked for from outside: once the asker has its answer, a thread of its own ends the
// server, the census and itself, and removes the process's directory. What stays is memory: the
// library, and the handlers of signals that could still come. EBUSY: modules are loaded, or left in
// memory, and nobody could look after them; or an operation is under way. `dry_run`: only that.
[[nodiscard]] Status leave(bool dry_run);
// What else of the runtime ends then; called once the server has gone.
void on_leave(void (*end)());

// Empty: not running. For tests and messages.
[[nodiscard]] std::string socket_path();

// To be registered before the first module is loaded, so that objects come and go with modules.
[[nodiscard]] const module::Observer* observer();

[[nodiscard]] const livepatch::Observer* patch_observer();

// The debug mode of object.hpp, for who holds objects back elsewhere.
int delay_release_ms();
void set_delay_release_ms(int ms);

// In a forked child, after module::after_fork() and hooks::after_fork(): the child has no server,
// sees the modules that it has, and may start a server of its own. Takes no locks.
void after_fork_child();

}  // namespace molt::control
