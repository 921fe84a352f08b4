// agent.hpp - the runtime put into a process that has none, before a verb talks to it.
#pragma once

#include "attach/attach.hpp"
#include "cli/options.hpp"
#include "cli/process.hpp"
#include "cli/targets.hpp"

#include <functional>
#include <string>

namespace molt::cli {

// The libmolt.so that is put into processes: $MOLT_RUNTIME, or what lies beside this program. Throws
// where there is none.
std::string runtime_path();

// Throws a Failure that says why not.
attach::Report attach_to(const Process& process, const Options& options);
// For verbs that may bring what they need: a process that has no control socket gets one. A dry run
// changes nothing, and fails at the connection as without this.
void attach_if_absent(Session& session);
const char* to_text(attach::Found found);
// Before functions are hooked or unhooked there: threads that block SIGTRAP no longer do
// (attach/masks.hpp). What that takes and cannot be had, the process itself says.
void open_traps(Session& session);
// Runs what changes functions there, with traps open, and again, for as long as the process may wait, if a
// thread was in the way: one that was born meanwhile and blocks them, or that the process may not look at
// (lender.hpp), since programs make threads when others allocate (jemalloc) and the agent makes one when all of
// its workers have something to do; or one that did not get a processor.
Json with_traps_open(Session& session, const std::function<Json()>& change);
// The same before a module is unloaded, if it has hooked functions.
void open_traps_for(Session& session, const std::string& module);

}  // namespace molt::cli
