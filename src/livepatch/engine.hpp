// engine.hpp - livepatches of this process: what can be asked, and what is answered.
//
//     gate.hpp          which version a thread takes
//     site.hpp          what sits at a function's entry
//     patch.hpp         what a patch consists of
//     enable.cpp        from a module's lists to a patch in transition
//     transition.cpp    from the first thread that changes over to the last
//     objects.cpp       libraries and modules that come and go under a patch
//     loader_watch.hpp  how the program's own dlopen and dlclose are noticed
//     show.cpp          what others see of it
//     states.cpp, shadow.cpp
//
// Roles      Any thread may ask; the operation runs on it. A thread of the runtime, "molt-patch",
//            exists while a transition is under way, and goes on trying.
// State      The installed patches in the order of their enabling; at most one transition.
// Invariants L1 One operation at a time has the token; who finds itself holding it is told EDEADLK.
//            L2 No lock is held while callbacks run.
//            L3 Whatever fails, the functions are as they were before, and so is what is shown.
//            L4 A patch holds a reference on its module while it is installed, and after that until
//               nothing of it can be in use: at once where its transition proved that, else
//               (forced, immediate) when a later proof does.
//            L5 Nobody waits for the dynamic loader's lock (dlopen, dlclose, dlsym, dladdr) while it
//               works: with the token, outside of callbacks. Who has that lock may wait for the work.
// Order      KERNEL.md P2 to P9. The patch becomes visible (observer) after its checks and before its
//            first callback, and vanishes after its last.
// Progress   An operation waits for others, never for the threads that a transition waits for.
// Death      fork: before_fork() waits for the step under way, not for callbacks. The child has the
//            transition as it was, no thread that works on it until something is asked of the engine
//            there, and refuses further operations if a callback of another thread was cut off.
// Refuses    enable.cpp; each refusal with its words.
// Checked by tests/livepatch, tests/conformance, tests/torture/livepatch_torture.cpp
#pragma once

#include <molt/livepatch.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/futex.hpp"
#include "base/result.hpp"
#include "threads/ranges.hpp"

namespace molt::linker {
class Linked;
}

namespace molt::livepatch {

using Cancelled = std::function<bool()>;

// molt_patch_enable(). `marked`: the owner's file says that it is a livepatch.
Status enable(molt_module* owner, const molt_patch* patch);
// The same of a patch file that was linked into the process; it lives as long as its module.
Status enable(molt_module* owner, const linker::Linked& linked);
// What is in the process's code but for what patches have put there. The memory is mapped.
void original_bytes(std::uintptr_t address, std::span<std::byte> bytes);
Status set_enabled(std::string_view name, bool enabled);
Status force(std::string_view name);
// Until no transition is under way. ETIMEDOUT, ECANCELED; the text says who holds it up.
Status wait(Deadline deadline, const Cancelled& cancelled);

// --- what is shown -----------------------------------------------------------------------------------

struct FunctionInfo {
  std::string name;
  unsigned long position = 1;
};
struct ObjectInfo {
  std::string name;
  bool patched = false;
  std::vector<FunctionInfo> functions;
};
struct PatchInfo {
  std::string name;
  bool enabled = false, transition = false, replace = false, immediate = false, forced = false;
  unsigned stack_order = 0;  // 1-based
  std::vector<ObjectInfo> objects;
};
std::vector<PatchInfo> list();
// ENOENT.
Result<PatchInfo> find(std::string_view name);

struct TransitionInfo {
  std::string patch;
  bool patching = true;
  bool forced = false;
  unsigned threads = 0, done = 0, left = 0;
  unsigned tries = 0;
  std::int64_t age_ms = 0;
};
std::optional<TransitionInfo> transition();

// How the transition under way went so far, or the last one that is over: at each try.
struct Moment {
  std::int64_t us = 0;  // since it began
  // On the side without the patch, between the sides (running, or not understood: it changes over by
  // itself, or is looked at again), and on the side with it.
  unsigned unpatched = 0, pending = 0, patched = 0;
};
struct History {
  std::string patch;  // "": there was none
  bool over = false;
  std::vector<Moment> moments;
};
History history();

// A thread that holds the transition up.
struct Blocker {
  int tid = 0;
  std::string thread;
  std::string function;              // the old function that it is in; "" if that is not known
  std::uintptr_t address = 0;        // what was found on its stack
  std::uintptr_t stack_address = 0;  // where it lies; 0: in a register
  std::size_t depth = 0;             // how far down, in bytes
  bool certain = false;              // else it may be a leftover
  std::string reason;
  std::string syscall;  // what it sleeps in
  std::int64_t asleep_ms = 0;
  std::uint64_t serial = 0;  // threads::Finding::serial
};
// Looks anew.
std::vector<Blocker> blocking();

// -1, 0, 1 as in the kernel's /proc/PID/patch_state; ESRCH.
Result<int> thread_state(int tid);
// All threads with their states, ascending.
std::vector<int> thread_ids();

// Kept after its patch has gone, because it may still be in use.
struct PinnedInfo {
  std::string name, reason;
};
std::vector<PinnedInfo> pinned();
// Frees those that are proven to be in no use. How many. With the token.
std::size_t collect_pinned();

// --- the rest of the runtime ---------------------------------------------------------------------------

// Told of a patch's presence for others to see, on the operation's thread and without locks.
struct Observer {
  void (*changed)(const std::string& patch);  // it is there now, or has other functions than before
  void (*gone)(const std::string& patch);
};
void set_observer(const Observer* observer);

// Of a module, before its notifiers hear of its coming; an error refuses it, and nothing remains.
Status module_coming(molt_module* module, bool is_livepatch);
// After its exit and its notifiers. `ways_in`: the runtime's code that leads into the module, and that
// threads may be in that have called one of its patched functions.
void module_going(molt_module* module, threads::RangeSet& ways_in);
const void* module_record(const molt_module* module);  // of PatchHooks
// Of a module whose init failed, before anything else of it is undone (D4): its patch is taken back,
// waiting for threads up to the deadline. What cannot be is forced out and pinned.
void owner_failed(molt_module* module, Deadline deadline);

// Whether functions can be redirected; switched off, a patch is refused with EBUSY. EBUSY as well:
// something is patched.
Status set_redirecting(bool on);
bool redirecting();

// Debug: holds patches that are over back for 1x to 4x of this long before they put their module.
void set_delay_release_ms(int ms);

// Follows dlopen and dlclose no longer. No patch is installed.
void stop_watching();

// Ends the thread that goes on trying, and waits for it. What it has not freed stays. No operation is
// under way, and no patch is installed.
void stop_worker();

void before_fork();
void after_fork(bool child);

// shadow.cpp
void shadow_before_fork();
void shadow_after_fork();

}  // namespace molt::livepatch
