// internal.hpp - what the parts of src/livepatch share: the engine's state and its steps.
#pragma once

#include <list>
#include <map>
#include <mutex>

#include "livepatch/engine.hpp"
#include "livepatch/gate.hpp"
#include "livepatch/patch.hpp"
#include "livepatch/site.hpp"
#include "threads/residency.hpp"

namespace molt::livepatch {

// A site that the transition changes, and what is in force at it on either side.
struct Change {
  Site* site;
  Func* unpatched;  // null: the original
  Func* patched;
  bool gated;  // else both are the same: the patch's version is below another's
};

struct Transition {
  PatchPtr patch;  // null: none is under way
  gate::Side target = gate::Side::unpatched;
  std::uint32_t generation = 0;
  std::vector<Change> changes;
  bool sealed = false;       // the census is complete
  bool nobody_left = false;  // it was turned back before that: all threads are where it aims
  bool forced = false;
  bool completing = false;  // all threads are there: what is left are its last callbacks
  std::int64_t began_ns = 0;
  // What the proof for the last entries that were changed has looked for as well.
  threads::RangeSet foreseen;
  std::uint64_t foreseen_number = 0;
  unsigned tries = 0;
  unsigned threads = 0, left = 0;
  unsigned pokes = 0;
  bool said_signaling = false;
  std::vector<threads::Finding> holders;  // of the last try
  std::string obstacle;                   // what else is in the way

  bool active() const { return patch != nullptr; }
  bool patching() const { return target == gate::Side::patched; }
};

struct Pinned {
  PatchPtr patch;
  std::string reason;
  bool needs_proof = true;  // else it is only held back (delay_release)
  std::int64_t not_before_ns = 0;
};

struct Engine {
  // Everything below; never held while a callback, a look at threads or a change of code is under way.
  std::mutex mutex;
  std::atomic<std::uint32_t> changes{0};
  int token = 0;                    // thread that has it; 0: free
  unsigned waiting = 0;             // for the token; guests let them go first
  const void* own_frame = nullptr;  // of the token's holder: where the runtime was entered
  bool in_callback = false;         // of the token's holder
  bool callback_over = false;       // it waits for the guest that is there; no further one comes
  int guest = 0;                    // thread that works beside the token's holder; 0: none
  unsigned guest_callbacks = 0;     // of its own that it is in
  std::list<PatchPtr> patches;      // in the order of enabling
  Transition transition;
  std::vector<Pinned> pinned;     // changed with the token and the mutex, read with either
  unsigned straighten_tries = 0;  // that are left: straighten()
  bool uncollected = false;       // code of earlier transitions is still to be freed: collect()
  std::map<std::string, molt_module*, std::less<>> alive;  // modules that may be patched
  std::map<std::string, bool, std::less<>> marked;         // of these, which are livepatches
  const Observer* observer = nullptr;
  void (*poke)(int tid) = nullptr;
  History history;      // of this transition, or the last one
  std::string cut_off;  // why nothing can be done any more (fork)
  bool worker = false;
  bool worker_shall_end = false;
  std::atomic<int> worker_tid{0};
  bool finishing = false;  // a transition is over, its patches are about to be released
  std::atomic<bool> worker_hurry{false};
  int delay_release_ms = 0;

  // Held by the token's holder but for the time of callbacks; fork waits for it.
  std::mutex step;
};
Engine& engine();
using Lock = std::unique_lock<std::mutex>;

// The right to change patches (L1).
class Token {
 public:
  // Waits for other operations. Check before use. The caller's __builtin_frame_address(0): what lies
  // deeper on its stack is the runtime's own.
  explicit Token(const void* own_frame);
  // Does not wait.
  Token(std::try_to_lock_t, const void* own_frame);
  ~Token();
  Token(const Token&) = delete;
  Token& operator=(const Token&) = delete;
  // EDEADLK, or why no operation is possible.
  const Status& status() const { return status_; }
  explicit operator bool() const { return held_; }

 private:
  bool held_ = false;
  Status status_;
};

// The same right for a thread that the dynamic loader has called, with the loader's lock held. Whoever waits
// for the token comes first: threads that load and unload without a pause would leave it to nobody. The token's
// holder may be in a callback that waits for that lock, so the token is not waited for there (L5): while a
// callback is under way a guest works beside its holder, who goes on when the guest has left.
class Guest {
 public:
  explicit Guest(const void* own_frame);
  ~Guest();
  Guest(const Guest&) = delete;
  Guest& operator=(const Guest&) = delete;
  explicit operator bool() const { return held_; }

 private:
  bool held_ = false;
  bool has_token_ = false;
  int guest_before_ = 0;
  const void* frame_before_ = nullptr;
};
void announce();
void say(const char* format, ...) __attribute__((format(printf, 1, 2)));  // "livepatch: ..."

// Of the object as a callback sees it. L2: around each call.
int call_pre_patch(Object& object);
void call_post_patch(Object& object);
void call_pre_unpatch(Object& object);
void call_post_unpatch(Object& object);

// --- objects.cpp ---
// Finds the loaded object, if there is one.
void bind(Object& object);
Result<ObjectSymbols> symbols_of(const Object& object);
// Finds the sites of all functions of a bound object; the first error, logged in the kernel's words.
Status resolve(Object& object);
void unbind(Object& object);

// --- transition.cpp; all with the token ---
void init_transition(const PatchPtr& patch, gate::Side target);
// Puts the object's functions in force, on the patched side only. With a transition that is not of
// this patch, or none: for all threads at once.
Status patch_object(Object& object);
// Takes them out at once: the caller knows that no thread is in them, or does not care.
Status unpatch_object(Object& object);
// Of an object whose memory has gone.
void drop_object(Object& object);
// Census, first try. The patch is enabled from here on, or not.
void start_transition();
// The calling thread, if it is on the other side and in none of the old functions.
void change_over_self();
void cancel_transition();
Status reverse_transition();
// One try; whether the transition is over.
bool try_complete(bool may_sample);
void ensure_worker();
// "b (thread 12 in slow, asleep 3 s; ...)": who holds it up.
std::string holders_text(const Transition& transition);
std::string function_at(std::uintptr_t address);
// --- release.cpp ---
// Takes the patch off the list; its module is put, or it is pinned.
void retire(const PatchPtr& patch, const char* why_pinned);

}  // namespace molt::livepatch
