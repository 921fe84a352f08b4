// registry.hpp - hooks by name, what is attached to them, and every change of it.
//
// Roles      One writer at a time (the registry's mutex); readers are hook callers (molt/host.hpp,
//            hook/walk.cpp), who take no lock.
// State      Per hook: its instances in the host, its attachments in order, the published chain. Per
//            module name a Lineage: which version is in force.
// Invariants I1 A frame that was validated keeps its chain and its entry's module (molt.h).
//            I2 hook.gen == chain.gen only while every entry of that chain may be called.
//            I3 Chains, owners and lineages are type-stable.
//            I4 Which version of a module runs is decided by one word, Lineage::current; chains
//               only cache that decision while their gens are open.
// Order      change(): gens closed -> union chains -> Lineage::current -> final chains, gens open
//            -> heavy_barrier -> frames read. A thread that saw the new `current` at one hook
//            reads, later in program order, a closed gen or a final chain at every other.
// Progress   Callers never wait for a writer, save in a paused hand-over, which is bounded.
// Death      threads/record.hpp.
// Refuses    A callback whose signature is not the hook's.
// Checked by tests/models (slot, replace), tests/litmus, tests/torture, tests/hook.
#pragma once

#include <molt/molt.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/futex.hpp"
#include "base/result.hpp"

namespace molt::hooks {

// One module version's right to be called; opaque outside this layer. Type-stable (I3).
using Owner = molt_owner;

// A thread that is inside a module.
struct Inside {
  int tid = 0;  // 0: an asynchronous callback, on no thread in particular
  std::string thread;
  std::string hook;
};

// Stops a wait early; set by another thread, e.g. when the asking client has gone.
using Cancelled = std::function<bool()>;

// Whether the callbacks can be attached in this process: -ENOENT unknown hook, -EINVAL signature.
Status check(const molt_callback* begin, const molt_callback* end);

// A new version of module `name`, attached to nothing yet, not in force.
Result<Owner*> create(std::string_view name, molt_callback* begin, molt_callback* end);
// f(begin, bytes): memory on the heap in which this layer names what lies in the module [begin, end):
// its callbacks (`owner` may be null), and hooks of its own, which it takes back only when it is
// closed.
void for_memory_naming(const Owner* owner, const void* begin, const void* end,
                       const std::function<void(const void*, std::size_t)>& f);
// Forgets an owner that is neither in force nor entered by any thread.
void destroy(Owner* owner);

// Puts `to` in force instead of `from` at all hooks in one step; either may be null. `from` is what
// is in force now (or was, before begin_pause). A caller inside `from` finishes there. -ENOMEM:
// nothing has changed.
Status change(Owner* from, Owner* to);
// change(owner, null) without memory: cannot fail, but its hooks take the slow path until the next
// change.
void revoke(Owner* owner);
bool in_force(const Owner* owner);
bool has_callbacks(const Owner* owner);

// Callers that reach the lineage of `owner` wait until change() or end_pause(). The calling thread,
// and threads that are already inside `owner`, do not: they skip, and go on in it, respectively. Of
// what is inside on no thread (asynchronous callbacks) nobody knows whose call is on its behalf: who
// pauses must let go from time to time (module/replace.cpp).
void begin_pause(Owner* owner);
void end_pause(Owner* owner);
// How many callers a pause has held up that have not got on since.
int held_up(const Owner* owner);
// Waits until no thread is inside `owner`, which was taken out of force or paused; during a pause not
// even one that was inside gets in again after it. False: the
// deadline passed or `cancelled` said so; `inside` then tells who is there.
bool drain(Owner* owner, Deadline deadline, const Cancelled& cancelled,
           std::vector<Inside>& inside);
// Whether a thread is inside now: a snapshot, exact once no one can enter. Then the first look that
// finds nobody is the proof, and later ones answer false whatever frames they meet.
bool entered(Owner* owner);
// Who that is; an asynchronous callback is on no thread.
std::vector<Inside> who_is_inside(Owner* owner);
// While this is on, every call of every hook, also of one without callbacks, takes the general walk,
// and so comes by threads::pass(). One at a time. Best effort: a hook for which there is no memory is
// left as it is.
void call_in(bool on);
// Whether the calling thread is inside `owner` itself.
bool self_inside(const Owner* owner);

struct Order {
  bool given = false;  // false: load order
  std::vector<std::string> modules;
};
// hook empty: for all hooks.
Status set_order(std::string_view hook, const Order& order);

struct CallbackInfo {
  std::string module;
  int order = 0;
};
struct HookInfo {
  std::string name, signature, description, rule, on_exception;
  std::uint64_t fingerprint = 0;
  std::vector<CallbackInfo> callbacks;  // in the order in which they are called
  Order order;
};
std::vector<HookInfo> list();
Result<HookInfo> find(std::string_view name);
std::size_t count();
// Whether a module that is loaded, or still in memory, has a callback on this hook.
bool is_attached(std::string_view hook);

// Keeps the writer out over a fork; the child forgets the threads that it does not have.
void before_fork();
void after_fork(bool child);

}  // namespace molt::hooks
