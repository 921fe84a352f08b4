// manager.hpp - the life of modules: what can be asked, and what is answered.
//
// Roles      Any thread may ask; the operation runs on it. Different modules proceed in parallel;
//            one operation at a time per module.
// State      The list of modules by name, in the kernel's four states, newest first; residents
//            (out of the list, memory still there); loads in flight.
// Invariants M1 A name is on the list from reservation until its memory is gone.
//            M2 No lock is held while module code runs (constructors, init, exit, notifiers, ...).
//            M3 References are taken under the list's lock or from a held one; never below zero.
//            M4 Memory is freed only after: not in force, nobody inside, no reference, no
//               dependant, no thread of it, exit returned.
// Order      KERNEL.md M1.5 for loading, M1.6 for unloading; each step is one function in load.cpp
//            and unload.cpp, in that order.
// Death      fork: operations of other threads are abandoned in the child, their modules pinned.
// Refuses    load.cpp and unload.cpp, each refusal with its words.
// Checked by tests/module, tests/conformance, tests/torture.
#pragma once

#include <molt/molt.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "audit/audit.hpp"
#include "base/futex.hpp"
#include "base/log.hpp"
#include "base/result.hpp"
#include "hook/registry.hpp"
#include "threads/census.hpp"
#include "threads/ranges.hpp"

namespace molt::linker {
class Linked;
}

namespace molt::module {

using Cancelled = hooks::Cancelled;

struct LoadRequest {
  int fd = -1;       // borrowed; read from offset 0. -1: `path` is opened, once it is to be read
  std::string path;  // with a descriptor: for people
  std::string args;
  std::string name;  // of a patch file's patch; empty: the one in the file
  bool force = false;
  bool probe = false;
  bool dry_run = false;
  int timeout_ms = -1;  // waiting for others; -1: 30 s
  Cancelled cancelled;  // may be empty
};
struct LoadReport {
  std::string name;
  std::string taint;
  bool shared = false;  // joined a load that was under way
  std::vector<std::string> warnings;
};
// Error codes: molt.h, molt_load().
Result<LoadReport> load(const LoadRequest& request);
// Whether live module `name` was loaded from a file with the content of `fd`.
bool same_content(std::string_view name, int fd);
// The name in the file's note, without loading it.
Result<std::string> name_in_file(int fd);

struct UnloadRequest {
  std::string name;
  bool resident = false;
  bool lazy = false;             // do not wait: go on in the background, also if it is in use
  bool ignore_pointers = false;  // free its memory although the process still has addresses in it
  bool dry_run = false;
  int timeout_ms = -1;  // waiting for threads inside; -1: 10 s
  Cancelled cancelled;
};
// quarantined: gone as if it were unmapped, but for what a sanitizer's reports need to name it.
enum class Fate { unmapped, resident, pinned, quarantined };
inline bool is_gone(Fate fate) { return fate == Fate::unmapped || fate == Fate::quarantined; }
const char* to_text(Fate fate);
struct UnloadReport {
  std::string name;
  Fate fate = Fate::unmapped;
  std::string reason;  // why it is not gone; of a dry run, who would be waited for
  std::int64_t drain_us = 0;
  bool for_good = false;  // it is not gone, and never will be
};
Result<UnloadReport> unload(const UnloadRequest& request);

struct ReplaceRequest {
  std::string name;  // empty: the name in the file
  int fd = -1;
  std::string path;
  std::string args;
  bool force = false;
  bool dry_run = false;
  int timeout_ms = -1;  // bounds the pause, and waiting for old callers; -1: 1 s
  Cancelled cancelled;
};
struct ReplaceReport {
  std::string name, from, to;
  std::size_t state_bytes = 0;
  std::int64_t pause_us = 0;
  Fate old = Fate::unmapped;
  std::string reason;
  std::vector<std::string> warnings;
  bool for_good = false;  // as of an unload
};
Result<ReplaceReport> replace(const ReplaceRequest& request);

Status set_enabled(std::string_view name, bool enabled);

struct Kept {
  std::string name, reason;
};
struct GcReport {
  std::vector<std::string> freed;
  std::vector<Kept> kept;
};
// `ignore_pointers` as in UnloadRequest.
GcReport gc(bool dry_run, bool ignore_pointers = false);

// Who has addresses in a live module: audit/audit.hpp. Stacks are searched too, for people.
struct AuditRequest {
  std::string name;
  int timeout_ms = -1;  // -1: 30 s
  Cancelled cancelled;
};
Result<audit::Report> audit_module(const AuditRequest& request);

// What stands between a module and its memory's end.
struct Holder {
  std::string what;                 // "thread", "module", "references", ...
  std::string where;                // "is in on_tick+0x1c", "is in a callback of hook http.request"
  std::string function;             // "on_tick+0x1c"; empty if it is not about one
  int tid = 0;                      // of the thread
  std::string thread;               // its name
  bool certain = false;             // false: a word on its stack, which may be a stale one
  std::uint64_t address = 0;        // in the module
  std::uint64_t stack_address = 0;  // where that word lies; 0: in a register
  std::uint64_t depth = 0;          // bytes from the thread's stack pointer to there
  std::int64_t asleep_ms = 0;       // at least; 0: not known, or it runs
  std::string syscall;              // in which it sleeps
  std::uint64_t serial = 0;         // threads::Finding::serial
};
struct BlockingReport {
  std::string name, state, reason;
  std::vector<Holder> holders;
};
// Who is in the code of a module, live or left in memory, or refers to it. One look; does not wait.
Result<BlockingReport> blocking(std::string_view name);
// threads::testify(), of one of its holders.
Status testify(int tid, std::uint64_t serial, threads::Testimony testimony);
// threads::take_loans()
Result<threads::Loans> take_loans();

// Every `seconds`, gc() in the background; 0: no more. For as long as the process lives.
void set_gc_interval(int seconds);
int gc_interval();

void lock_loading();
// For who wants to leave the process: from now on nothing is loaded until open_again(). EBUSY: a module is loaded
// or left in memory, or an operation is under way. `dry_run`: only that. False: somebody else is leaving already.
[[nodiscard]] Result<bool> close_if_empty(bool dry_run);
void open_again();
bool loading_locked();
// Letters of the process; "" if clean.
std::string process_taint();

struct ParamInfo {
  std::string name, type, value, description;
  bool writable = false;
};
struct ImportInfo {
  std::string name, module;  // module "": missing and optional
};
struct Requests {
  unsigned loads = 0;   // asked for in all, the winner included
  unsigned joined = 0;  // of these, joined to a load under way
  log::Requester first;
};
// What `list` shows.
struct ModuleInfo {
  std::string name, version, taint;
  std::uint64_t size = 0, address = 0;
  int refcount = 0;
  std::vector<std::string> holders;
  molt_module_state state = MOLT_MODULE_STATE_UNFORMED;
  bool enabled = false, permanent = false;
};
// What `info` shows beside.
struct ModuleDetail {
  ModuleInfo module;
  std::string description, license, srcversion, path, store;
  std::vector<ParamInfo> parameters;
  std::vector<hooks::CallbackInfo> callbacks;  // module: the hook's name
  std::vector<std::string> exports;
  std::vector<ImportInfo> imports;
  unsigned state_version = 0;
  Requests requests;
  std::vector<std::string> hazards;
  std::uint64_t exceptions = 0;
};
struct ResidentInfo {
  std::string name, version, reason;
  std::uint64_t size = 0, id = 0;
  bool pinned = false;  // else resident
};
std::vector<ModuleInfo> list();
// With `values`, asks the parameters for their values (module code runs).
Result<ModuleDetail> info(std::string_view name, bool values);
std::vector<ResidentInfo> residents();
const char* state_text(molt_module_state state);  // "live", "coming", "going", "unformed"
// The kernel's /proc/modules line.
std::string proc_line(const ModuleInfo& module);

Result<std::string> get_param(std::string_view module, std::string_view param);
Status set_param(std::string_view module, std::string_view param, const char* value);

// A callback's wrapper caught an exception; `what` may be null.
void callback_threw(const molt_callback* callback, const char* what, bool fail_closed);

// Told of a module's presence for others to see, at the points of KERNEL.md M1.5 (11) and M1.6.
// Called without locks, on the operation's thread.
struct Observer {
  void (*formed)(const std::string& name);
  void (*gone)(const std::string& name);
};
void set_observer(const Observer* observer);

// Livepatches of modules that come and go (KERNEL.md P9). Called without locks, on the operation's
// thread.
struct PatchHooks {
  // Before the notifiers; an error refuses the module, and nothing of it remains patched.
  Status (*coming)(molt_module* module, bool is_livepatch);
  // After exit and notifiers. `ways_in`: where a thread may be that has called a function of the module
  // and is not in its code yet; counts with that code from here on.
  void (*going)(molt_module* module, threads::RangeSet& ways_in);
  // Its init failed: a patch that it enabled goes first.
  void (*failed)(molt_module* module);
  // A patch file's init.
  Status (*enable)(molt_module* module, const linker::Linked& linked);
  // What is in the process's code but for what patches have put there.
  void (*original_bytes)(std::uintptr_t address, std::span<std::byte> bytes);
  // The pointer by which a live module is known to livepatching, or null.
  const void* (*record)(const molt_module* module);
};
void set_patch_hooks(const PatchHooks* hooks);

enum class Until { live, gone, freed };
// Waits for a module's state; name empty: until no operation is under way. -ETIMEDOUT, -ECANCELED.
Status wait(std::string_view name, Until until, Deadline deadline, const Cancelled& cancelled);
// What is under way, for people; "" if nothing.
std::string operation();

// Why nothing can be done any more (base/poison.hpp); "" as a rule.
std::string poisoned();
// The module that was unloaded last, with its taints, as the kernel's reports have it: "name(P)".
std::string last_unloaded();

// The directory for the store; before the first load. Empty: chosen by base/directory.hpp.
void set_directory(std::string path);

void before_fork();
void after_fork(bool child);

}  // namespace molt::module
