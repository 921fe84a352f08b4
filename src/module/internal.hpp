// internal.hpp - what the parts of src/module share: the record of a module and the list of them.
#pragma once

#include <molt/molt.h>

#include <atomic>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "base/futex.hpp"
#include "base/log.hpp"
#include "base/memory.hpp"
#include "base/result.hpp"
#include "elf/loaded.hpp"
#include "hook/registry.hpp"
#include "linker/linker.hpp"
#include "module/manager.hpp"
#include "module/store.hpp"
#include "threads/ranges.hpp"

namespace molt::module {
struct Flight;
struct Module;
}  // namespace molt::module

// What the public header calls the core's side of a module.
struct molt_core_module {
  molt::module::Module* module;
};

namespace molt::module {

// The kernel's letters, as bits in this order.
enum Taint : unsigned {
  taint_proprietary = 1,  // P: licence that is not free
  taint_forced = 2,       // F: loaded in spite of its magic
  taint_livepatch = 8,    // K: it replaces functions
};
std::string taint_text(unsigned taint);
// Of the process beside those of its modules; R: a module was removed while it could still run.
inline constexpr unsigned taint_resident = 4;

// Which file; equal identities are the same content without reading it.
struct FileIdentity {
  std::uint64_t device, inode, size;
  std::int64_t mtime_ns, ctime_ns;
  bool operator==(const FileIdentity&) const = default;
};

struct Module {
  // --- constant once the module is on the list ---
  std::string name, version, license, description, srcversion;
  std::string path;  // as asked for
  FileIdentity file;
  std::string hash;
  std::uint64_t id = 0;
  Stored stored;
  void* handle = nullptr;                  // of a shared object
  std::unique_ptr<linker::Linked> linked;  // of a patch file
  molt_module linked_descriptor{};
  molt_module* descriptor = nullptr;
  molt_core_module core{this};
  hooks::Owner* owner = nullptr;
  std::uint64_t address = 0, size = 0;
  std::optional<elf::MappedFile> mapping;
  threads::RangeSet text;             // its executable segments
  std::vector<std::string> hazards;   // what keeps it mapped after dlclose()
  bool stays_mapped = false;          // one of them holds as long as the process lives
  std::vector<std::string> effects;   // what outlasts it
  bool has_symbols = false;           // beside the descriptor: another object may be bound to them
  std::vector<std::string> warnings;  // what whoever asked for the load should know
  bool permanent = false;             // init without exit
  bool livepatch = false;             // marked: it may enable a patch

  // --- under Manager::mutex ---
  molt_module_state state = MOLT_MODULE_STATE_UNFORMED;
  int refcnt = 0;  // as the kernel stores it: the base while not going, and 1 for each reference
  bool base_held = false;
  int inside = 0;   // calls of the core into it (parameters) under way
  int looking = 0;  // those of them that only look who is in it: in nobody's way but the memory's
  bool wanted =
      false;  // somebody waits until nobody looks at it: no look begins, and who looks ends
  int parameters_by = 0;  // the thread that reads or sets parameters; 0: none
  bool enabled = true;
  bool was_used = false;       // another module imported from it, or an offer of it was acquired
  const char* busy = nullptr;  // the operation that has it, "replace"; null: none
  bool leaving = false;        // UNFORMED for the second time
  bool freeing = false;        // its memory is about to go: nobody begins to look at it
  bool formed = false;         // the observer was told of it
  unsigned taint = 0;
  int loader_tid = 0;  // the thread that loads it; 0 when its load is over
  std::vector<std::shared_ptr<Module>> providers;  // each referenced once
  std::vector<Module*> users;                      // who references it as a provider
  std::vector<ImportInfo> imports;
  Requests requests;

  // --- of one that goes ---
  threads::RangeSet ways_in;  // PatchHooks::going

  // --- of residents ---
  bool pinned = false;
  bool destroyed = false;        // its static objects are
  bool ignore_pointers = false;  // free it although writable memory holds addresses in it
  bool exit_pending = false;     // a thread was inside when it was removed: exit() waits for it
  bool lazy = false;             // freed in the background as soon as that is proven safe
  std::string reason;

  std::atomic<std::uint64_t> exceptions{0};

  int reported_refcnt() const { return refcnt - 1; }
  bool is_mapped() const { return handle != nullptr || linked != nullptr; }
  int references() const { return refcnt - (base_held ? 1 : 0); }
  void take_base() {
    refcnt += base_held ? 0 : 1;
    base_held = true;
  }
  void drop_base() {
    refcnt -= base_held ? 1 : 0;
    base_held = false;
  }
};
using ModulePtr = std::shared_ptr<Module>;

// A load under way, which others with the same file or content join.
struct Flight {
  FileIdentity file;
  std::string hash;  // known once the file was read
  std::string name;  // known once the note was read
  std::string args;
  std::string as;  // the name asked for
  int tid = 0;
  unsigned joined = 0;
  bool done = false;
  Status outcome;
  LoadReport report;
  std::atomic<std::uint32_t> word{0};
};
using FlightPtr = std::shared_ptr<Flight>;

struct Thread;
struct Offer {
  std::string kind, name;
  const void* structure;
  Module* owner;
};
struct Notifier {
  molt_notifier* notifier;
  Module* owner;  // null: the host
  int running = 0;
  bool removed = false;
  std::uint64_t sequence;
};

// Unloaded, but mapped, so that reports can name its functions: quarantine.cpp.
struct Quarantined {
  Stored stored;
  void* handle;
};

struct Manager {
  std::mutex mutex;
  // Changes with every change of a module's state; waiters sleep on it.
  std::atomic<std::uint32_t> changes{0};
  std::list<ModulePtr> modules;  // newest first
  std::vector<ModulePtr> residents;
  std::list<Quarantined> quarantined;  // oldest first
  std::vector<FlightPtr> flights;
  std::map<int, FlightPtr> waiting;  // tid -> the flight that it has joined
  std::vector<std::shared_ptr<Notifier>> notifiers;
  std::list<Offer> offers;  // a vector would keep what it moved away
  std::vector<Thread*> threads;
  std::list<std::string> operations;
  const Observer* observer = nullptr;
  const PatchHooks* patch_hooks = nullptr;
  bool told_of_livepatch = false;
  bool locked = false;
  bool closed = false;  // for as long as Molt leaves the process
  unsigned taint = 0;
  std::string directory;
  std::string last_unloaded;
  std::uint64_t next_id = 1;
};
Manager& manager();
using Lock = std::unique_lock<std::mutex>;

// Releases the lock, sleeps until something changed, takes it again. False: the deadline passed or
// the request was cancelled.
bool wait_for_change(Lock& lock, Deadline deadline, const Cancelled& cancelled);
void announce_change();

// Under the lock. Skips UNFORMED modules unless told otherwise (KERNEL.md M1.3).
ModulePtr find(std::string_view name, bool unformed = false);
// Of those that are left in memory: the first of that name, or the one that is NAME,N in the tree.
ModulePtr find_resident(std::string_view name);
Module* find_descriptor(const molt_module* descriptor);

// Registers what is under way, for people and for `wait`.
class OperationScope {
 public:
  explicit OperationScope(std::string what);
  ~OperationScope();
  OperationScope(const OperationScope&) = delete;
  OperationScope& operator=(const OperationScope&) = delete;

 private:
  std::list<std::string>::iterator at_;
};
// Poisoned or locked: why no operation may begin. Under the lock.
Status operations_open(const Lock& lock);
// The same, or no memory for one. Takes the lock.
Status operations_allowed();

// "1. Refuses with words": who stops a module from being removed. Under the lock. Threads that can
// be asked to stop do not count.
Status removable(const Module& module, bool resident);

// How long an operation may wait for threads to leave.
struct Patience {
  Deadline deadline;
  Cancelled cancelled;
};

// --- notify.cpp ---
// Calls the notifiers without the lock. At COMING a veto stops, and those called before are told
// GOING. Elsewhere results are ignored.
Status notify(Module& module, molt_module_state event);
void remove_notifiers_of(Module& module);
bool has_notifiers(const Module& module);  // under the lock
// --- offer.cpp ---
void remove_offers_of(const Module& module);
// --- thread.cpp ---
int thread_count(const Module& module);
// "a, b": of its threads; "" if none runs. Under the lock.
std::string thread_names(const Module& module);
int stoppable_threads(const Module& module);
// Asks the module's stoppable threads to stop and waits for them. False: deadline or cancelled.
bool stop_threads(Module& module, Deadline deadline, const Cancelled& cancelled);
// Whether the calling thread was started for this module.
const Module* thread_owner();
void forget_threads_after_fork();
// One line in the event log, told to whoever asked for the load as well.
[[gnu::format(printf, 2, 3)]] void warn(Module& module, const char* format, ...);
// --- params.cpp ---
// A dry run's part of apply_args().
void name_unknown_params(Module& module, const std::string& args);
Status apply_args(Module& module, const std::string& args);
// --- unload.cpp ---
// After this nothing can be inside: waits for core calls and hook callers. False: who is inside.
bool drain(Module& module, Deadline deadline, const Cancelled& cancelled,
           std::vector<hooks::Inside>& inside);
bool await_core_calls(Module& module, Deadline deadline, const Cancelled& cancelled);
std::string name_them(const std::vector<hooks::Inside>& inside);
void call_exit(Module& module);
// Notifiers and offers of the module.
void take_down(Module& module);
void drop_providers(Module& module);
// Why the memory cannot be freed now; "" if nothing is in the way.
std::string cannot_free(const Module& module);
// What an audit of the process's memory found: "2 pointers left: ..."; "" if nothing is in the way.
// `may_destroy`: the module's static objects may be destroyed, if that may be all that is left.
std::string pointers_left(Module& module, bool may_destroy);
// --- residency.cpp ---
// Waits until it is proven that no thread can return into the module's code. "": it is. Otherwise
// who holds it, or why nothing could be proven.
std::string threads_left(const Module& module, Deadline deadline, const Cancelled& cancelled);
std::string name_holders(const std::vector<Holder>& holders);
// --- quarantine.cpp ---
// Where reports shall name what is gone: ends the module as dlclose() would, and leaves its memory
// mapped. False: nothing was done, dlclose() shall.
bool quarantine(Module& module);
// --- reaper.cpp ---
// One try for each of them; true if none is left. (unload.cpp)
bool finish_lazy();
// Sees to it that lazily unloaded modules are freed when they can be.
void reap_in_background();
void reaper_after_fork();

// Frees the memory, or keeps it as resident (something may still use it) or pinned (the dynamic
// loader keeps it), with the reason.
Fate dispose(const ModulePtr& module, const Patience& patience, std::string& reason);
// From GOING to the end of the name: exit(), notifiers, objects, references, memory. The caller
// takes the module off the list.
Fate go(const ModulePtr& module, bool with_exit, bool resident, const Patience& patience,
        std::string& reason);
// Livepatches that concern the module, or that it is.
Status patch_coming(Module& module);
void patch_going(Module& module);
void patch_failed(Module& module);
const void* patch_record(const Module& module);
void tell_formed(Module& module);
void tell_gone(Module& module);

// --- load.cpp ---
// A module's file, read and checked, before anything of it is mapped.
struct Prepared {
  FileIdentity file;
  Bytes content;
  std::string hash;
  std::string name, version, license, description, srcversion;
  std::vector<std::string> hazards, effects;
  bool stays_mapped = false;
  bool has_symbols = false;
  unsigned taint = 0;
  bool livepatch = false;
  bool is_patch_file = false;
};
Result<Prepared> prepare(const LoadRequest& request);
// Everything of a load up to a successful init(): the module is COMING, its callbacks not in force.
// `beside`: the live version that it will replace (it shares the name), or null. Frees the content.
Result<ModulePtr> bring_up(const LoadRequest& request, Prepared& prepared, Module* beside);
// Undoes bring_up() of a module whose init() had succeeded.
void bring_down(const ModulePtr& module);
Result<FileIdentity> identify(int fd);

// --- patch_file.cpp ---
bool valid_name(std::string_view name);
// prepare() of a patch file, but for the identity of its file.
Result<Prepared> prepare_patch(const LoadRequest& request, Bytes content);
Result<std::string> name_in_patch(std::span<const std::byte> content);
// Links it, and makes a descriptor for it.
Status map_patch(Module& module, std::span<const std::byte> content);
// What map_patch() checks.
Status would_link(const Module& module, std::span<const std::byte> content);
// Its init.
Status enable_patch(Module& module);

// --- replace.cpp ---
// Whether `incoming` takes over the state of `old`.
Status state_compatible(const Module& old, const Module& incoming, bool force);

// A call of the core into module code, or a look at its memory, other than an operation's own: holds
// the memory, not the reference count. Not to be begun while it is `freeing`.
class InsideScope {
 public:
  InsideScope(Lock& lock, Module& module, bool looks = false);
  ~InsideScope();
  InsideScope(const InsideScope&) = delete;
  InsideScope& operator=(const InsideScope&) = delete;

 private:
  Module& module_;
  const bool looks_;
};

// The right to call a module's parameter functions: one thread at a time has it (molt.h promises it
// to them). Takes the lock held, and leaves it held. False: this thread has it already, from a
// parameter function that asks for a parameter of its own module.
class ParametersScope {
 public:
  ParametersScope(Lock& lock, Module& module);
  ~ParametersScope();
  ParametersScope(const ParametersScope&) = delete;
  ParametersScope& operator=(const ParametersScope&) = delete;
  explicit operator bool() const { return mine_; }

 private:
  Module& module_;
  bool mine_;
};

// Notes, for this thread, that the core calls a function of this module (null: of the host).
class CallScope {
 public:
  explicit CallScope(const Module* module);
  ~CallScope();
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;

 private:
  friend bool called_by_core(const Module& module);
  const Module* const module_;
  const CallScope* const outer_;
};
bool called_by_core(const Module& module);
// Whether this thread runs code of the module: it would wait for itself, or return into nothing.
bool self_inside(const Module& module);

}  // namespace molt::module
