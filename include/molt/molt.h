/* molt.h - the C interface of Molt, and the manual of what it is for.
 *
 * Molt changes the code of a running process. A *host* is a program that declares hook points; a
 * *module* is a shared object that attaches callbacks to them. Modules are loaded, stacked,
 * disabled, replaced and unloaded while any number of threads run through the hooks, and no thread
 * ever runs code that is gone.
 *
 *     // host                                        // module
 *     #include <molt/host.hpp>                       #include <molt/module.hpp>
 *     #include "files.hpp"  // struct open_point     #include "files.hpp"
 *     molt::hook<open_point> on_open;                static int no_dotfiles(const char* path) {
 *     int main() {                                     return path[0] == '.' ? -EACCES : 0;
 *       molt::start();                               }
 *       ... if (int e = on_open(path)) return e;     MOLT_MODULE("no_dotfiles", "1.0", "MIT", "...")
 *     }                                              MOLT_HOOK(open_point, no_dotfiles)
 *
 *     $ molt load -p PID no_dotfiles.so      $ molt unload -p PID no_dotfiles
 *
 * Use it for code that must come and go while the program is busy. Do not use it where a restart is
 * free, or to isolate code that you do not trust: a module runs with all rights of its host.
 *
 * Costs (see `./run bench`): an empty hook is one predicted branch; a chain of callbacks costs what
 * direct calls cost plus about 0.3 ns; unloading waits only for threads inside that one module.
 *
 * Limits at fork: the child keeps all modules and hooks. Records of threads that do not exist in
 * the child are cleared. The control socket stays with the parent; call molt_start() again in the
 * child to give it one. An operation that was under way in another thread at the moment of fork is
 * abandoned in the child: its module stays as it was at that moment, and is pinned.
 *
 * C++ programs include <molt/host.hpp> or <molt/module.hpp>, which are inline over this file; no
 * C++ library type crosses the library's edge.
 *
 * Errors: functions that return int give 0 or a negative errno; molt_last_error() then tells in
 * words what, why and what to do. Outputs are untouched on failure. Unless said otherwise a
 * function may be called from any thread, takes short internal locks, is not async-signal-safe, and
 * must not be called from a signal handler. Calling hooks is allowed everywhere, signal handlers
 * included (the first hook call of a thread maps memory once; make it outside a handler if the
 * handler must not).
 */
#ifndef MOLT_MOLT_H
#define MOLT_MOLT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MOLT_API __attribute__((visibility("default")))
/* Version of every structure below. A module built for another one is refused. */
#define MOLT_ABI 1
/* Longest module name in bytes, without the terminating NUL (the kernel's limit). */
#define MOLT_NAME_MAX 55

/* ---------------------------------------------------------------------------------------------
 * Hooks: the read side
 *
 * Roles      Callers (any thread) walk a chain; one writer at a time publishes chains.
 * State      hook.chain, hook.gen; one frame (a pointer to the chain entry being called) for each
 *            nested hook call of a thread, in that thread's record.
 * Invariants I1 A frame that was validated keeps its chain's memory and its entry's module.
 *            I2 hook.gen == chain.gen only while every entry of that chain may be called.
 *            I3 Chains are type-stable: their memory is recycled, never unmapped.
 * Order      caller: frame = entry; [compiler barrier]; gen = hook.gen    (molt::hook::step)
 *            writer: hook.gen = other; membarrier; read all frames        (hook/drain.cpp)
 *            Forbidden: caller sees the old gen, and writer sees the old frame.
 *            Litmus: tests/litmus; model: tests/models/slot.pml.
 * Death      A thread's frames are cleared by its exit; fork clears those of threads the child
 *            does not have; forced unwinding clears them on the way out.
 * -------------------------------------------------------------------------------------------*/

struct molt_owner;     /* the core's record of one loaded module version */
struct molt_hook_core; /* the core's side of a hook */
typedef void (*molt_fn)(void);

struct molt_entry {
  molt_fn fn; /* the callback, cast; NULL ends a chain */
  struct molt_owner* owner;
};

struct molt_chain {
  struct molt_entry head; /* {NULL, NULL}: a frame pointing here holds the chain but no module */
  uint64_t gen;           /* unique over the life of the process */
  uint32_t capacity;      /* entries that fit, the terminating one included */
  uint32_t count;
  struct molt_hook_core* core;
  struct molt_entry entries[];
};

/* How the results of several callbacks make one. */
enum molt_combine {
  MOLT_COMBINE_ALL = 0,        /* void hooks: all are called */
  MOLT_COMBINE_FIRST = 1,      /* stop at the first result that differs from the default */
  MOLT_COMBINE_UNANIMOUS = 2,  /* stop at the first result <= 0 and answer 0; else the default */
  MOLT_COMBINE_LAST = 3,       /* last non-default result; stop at one that is also non-zero */
  MOLT_COMBINE_ONLY_FIRST = 4, /* only the first callback is asked */
  MOLT_COMBINE_BY_NAME = 5,    /* only the callback of a named module is asked */
};

enum molt_on_exception {
  MOLT_FAIL_OPEN = 0,   /* as if the callback had returned the default */
  MOLT_FAIL_CLOSED = 1, /* as if it had returned exception_result */
};

/* What a host says of a hook; constant, and alive as long as the hook is registered. */
struct molt_hook_info {
  uint32_t size; /* sizeof(struct molt_hook_info) */
  uint32_t combine;
  uint32_t on_exception;
  uint32_t result_size; /* bytes; 0 for void */
  const char* name;
  const char* signature; /* canonical text, as molt::signature_of<F>() gives it */
  uint64_t fingerprint;  /* molt_fingerprint(signature) */
  const void* default_result;
  const void* exception_result; /* the result of a callback that threw */
  const char* description;
};

struct molt_hook {
  struct molt_chain* chain; /* NULL: nothing attached */
  uint64_t gen;
  struct molt_hook_core* core;
  const struct molt_hook_info* info;
};

/* One per thread, in static TLS. top == end: no record yet, or nested deeper than it holds. */
struct molt_tls {
  const struct molt_entry** top;
  const struct molt_entry** end;
};
extern MOLT_API __thread struct molt_tls molt_tls_self __attribute__((tls_model("initial-exec")));

/* Makes room for one more frame and returns it: registers the calling thread, or chains another
 * block of frames. Async-signal-safe; maps memory at most once per block; never fails softly: with
 * no memory at all it waits for some (hook calls cannot report errors). */
MOLT_API const struct molt_entry** molt_frame_extend(void);
/* Leaves the innermost frame; only for a frame that molt_frame_extend() returned. */
MOLT_API void molt_frame_retract(const struct molt_entry** frame);

/* Registers a hook. Fails with -EEXIST when a hook of that name has another signature (the hook
 * then stays empty and works), -EINVAL for a malformed one, -ENOMEM. */
MOLT_API int molt_hook_register(struct molt_hook* hook);
/* The caller guarantees that no thread is in this hook or will call it again. */
MOLT_API void molt_hook_unregister(struct molt_hook* hook);

/* The general walk over a chain, out of line: what C hosts use, and the path that hooks take
 * while they are being changed. The caller loops
 *     molt_walk_begin(&walk, &hook);
 *     while ((fn = molt_walk_next(&walk)) != NULL) { r = ((my_fn*)fn)(...); if (r != dflt) break; }
 *     molt_walk_end(&walk);
 * on one thread. A callback may run between next() and the following next() or end(). */
struct molt_walk {
  struct molt_hook* hook;
  const struct molt_chain* chain;
  const struct molt_entry** chain_frame;
  const struct molt_entry** call_frame;
  const char* only_module; /* NULL, or the module whose callback is wanted */
  uint32_t next;
  uint32_t flags;
};
MOLT_API void molt_walk_begin(struct molt_walk* walk, struct molt_hook* hook);
MOLT_API void molt_walk_begin_named(struct molt_walk* walk, struct molt_hook* hook,
                                    const char* module);
/* For a caller whose innermost frame points at entry `next` of `chain`, and whose validation failed:
 * goes on there. With next == 0 nothing was validated yet, and the walk begins anew. */
MOLT_API void molt_walk_resume(struct molt_walk* walk, struct molt_hook* hook,
                               const struct molt_chain* chain, uint32_t next);
MOLT_API molt_fn molt_walk_next(struct molt_walk* walk);
MOLT_API void molt_walk_end(struct molt_walk* walk);

/* The same for callbacks that may end on another thread than they began on (coroutines): the
 * module is protected by per-CPU counters (rseq), not by the thread's record. begin, next and end
 * may be called on different threads, one after the other. */
struct molt_async_walk {
  struct molt_hook* hook;
  struct molt_owner* inside; /* the module whose callback is under way, or NULL */
  void* snapshot;
  uint32_t next;
  uint32_t count;
};
/* 0, or -ENOMEM: then the walk is empty. */
MOLT_API int molt_async_begin(struct molt_async_walk* walk, struct molt_hook* hook);
MOLT_API molt_fn molt_async_next(struct molt_async_walk* walk);
MOLT_API void molt_async_end(struct molt_async_walk* walk);

/* FNV-1a, 64 bits, of the text without its white space. Async-signal-safe. */
MOLT_API uint64_t molt_fingerprint(const char* signature);

/* ---------------------------------------------------------------------------------------------
 * Modules: what a module's file contains. The macros of molt/module.hpp (C++) and molt/module.h
 * (C) write these; by hand only in unusual cases.
 * -------------------------------------------------------------------------------------------*/

enum molt_order { MOLT_ORDER_FIRST = -1, MOLT_ORDER_NORMAL = 0, MOLT_ORDER_LAST = 1 };

enum molt_item_flags {
  MOLT_OPTIONAL = 1u,   /* a callback or import that may be missing in this host */
  MOLT_RESTRICTED = 2u, /* an export for modules with a free licence only */
  MOLT_WRITABLE = 4u,   /* a parameter that may be set while the module is live */
};

struct molt_callback {
  const char* hook;
  const char* signature;
  uint64_t fingerprint;
  molt_fn fn;
  int32_t order;
  uint32_t flags;
  uint32_t sequence; /* among the module's own callbacks; smaller first */
  uint32_t reserved;
  const struct molt_hook_info* bound; /* filled in by the core before the callback can run */
};

/* Both are called on an operation's thread, never concurrently with each other. */
struct molt_param {
  const char* name;
  const char* type; /* "int", "uint", "long", "ulong", "bool", "double", "string" or the author's */
  const char* description;
  int (*set)(void* value, const char* text);               /* 0 or negative errno */
  int (*get)(const void* value, char* text, size_t bytes); /* length or negative errno */
  void* value;
  uint32_t flags;
  uint32_t reserved;
};

/* Setter and getter of parameters that are an int. */
MOLT_API int molt_param_set_int(void* value, const char* text);
MOLT_API int molt_param_get_int(const void* value, char* text, size_t bytes);

struct molt_export {
  const char* name;
  const char* signature;
  uint64_t fingerprint;
  void* address;
  uint32_t flags;
  uint32_t reserved;
};

struct molt_import {
  const char* name;
  const char* signature;
  uint64_t fingerprint;
  void** slot; /* filled in by the core before init; NULL stays there for a missing optional one */
  uint32_t flags;
  uint32_t reserved;
};

/* State that moves from one version of a module to the next. */
struct molt_state;
/* Appends to the state under construction; -ENOMEM. Only inside save(). */
MOLT_API int molt_state_write(struct molt_state* state, const void* data, size_t bytes);
MOLT_API const void* molt_state_data(const struct molt_state* state);
MOLT_API size_t molt_state_size(const struct molt_state* state);
/* The state_version of the module that saved it. */
MOLT_API uint32_t molt_state_version(const struct molt_state* state);
/* 0: the one transfer of a paused hand-over, or the first of a live one, while the old version
 * still runs. 1: the last of a live one: the old version's callbacks have all ended. */
MOLT_API int molt_state_final(const struct molt_state* state);

enum molt_module_flags {
  MOLT_MODULE_LIVE_HANDOVER = 1u, /* replace without a pause: save() may run beside callbacks */
};

struct molt_state_info {
  uint32_t version; /* what save() writes */
  uint32_t oldest;  /* the oldest version that restore() understands */
  uint32_t flags;   /* MOLT_MODULE_LIVE_HANDOVER */
};

struct molt_core_module; /* opaque */

struct molt_module {
  uint32_t size;     /* sizeof(struct molt_module) */
  uint32_t abi;      /* MOLT_ABI */
  const char* magic; /* MOLT_MAGIC */
  const char* name;
  const char* version;
  const char* license;
  const char* description;
  const struct molt_state_info* state; /* NULL: no state to hand over */
  int (*init)(void);                   /* 0 or negative errno; a positive result is an error */
  void (*exit)(void);                  /* NULL with an init: the module is permanent */
  int (*save)(struct molt_state* state);
  int (*restore)(const struct molt_state* state);
  struct molt_callback* callbacks;
  struct molt_callback* callbacks_end;
  const struct molt_param* params;
  const struct molt_param* params_end;
  const struct molt_export* exports;
  const struct molt_export* exports_end;
  const struct molt_import* imports;
  const struct molt_import* imports_end;
  struct molt_core_module* core; /* filled in by the core; NULL in a file */
};

/* Symbol of the descriptor in a module's file. */
#define MOLT_MODULE_SYMBOL "molt_this_module"
/* What a module and its host must agree on beyond MOLT_ABI. */
#define MOLT_MAGIC "molt-1 x86_64 "

/* Called by a callback's wrapper when it caught a C++ exception: logs it, and returns where the
 * result to give lies (NULL for void). `what` may be NULL. */
MOLT_API const void* molt_callback_failed(const struct molt_callback* callback, const char* what);

/* ---------------------------------------------------------------------------------------------
 * Running a host
 * -------------------------------------------------------------------------------------------*/

struct molt_options {
  uint32_t size;             /* sizeof(struct molt_options) */
  const char* name;          /* what `molt ps` shows; NULL: the program's name */
  const char* directory;     /* for socket and store; NULL: chosen, see molt(7) */
  const char* log_prefix;    /* put before each event's text; NULL: none */
  uint32_t delay_release_ms; /* debugging: hold every released object for 1x to 4x of this long */
};
/* Opens the control socket and starts the runtime's threads ("molt", asleep in a descriptor table
 * of its own, and "molt-worker", on which operations from the command line run). Hooks and
 * molt_load() work without it. -EALREADY when started; on other failures hooks still work. */
MOLT_API int molt_start(const struct molt_options* options);
/* Closes the socket and ends those threads; modules stay. Waits for the operation under way. Not what
 * molt_start_agent() has started. */
MOLT_API void molt_stop(void);
/* As molt_start(NULL), for who puts the library into a program that knows nothing of it (`molt attach`,
 * `molt run`): fewer threads, since nobody in there will call molt_stop(). `molt detach` ends it. */
MOLT_API int molt_start_agent(void);
/* Why the last molt_ call of this thread failed, in one line; "" if none did. The text stays valid
 * until this thread's next molt_ call. */
MOLT_API const char* molt_last_error(void);

enum molt_load_flags {
  MOLT_LOAD_FORCE = 1u, /* accept another magic; taints F */
  MOLT_LOAD_PROBE = 2u, /* -ENODEV from init means "not for this host": not logged as an error */
};
enum molt_unload_flags {
  MOLT_UNLOAD_RESIDENT = 1u, /* exit and free the name, leave the memory to gc; taints R */
  /* Unmap it although the process's memory still holds addresses in it, which otherwise makes it
   * resident. Who follows one of them crashes. */
  MOLT_UNLOAD_IGNORE_POINTERS = 2u,
  /* Wait for nobody, and go on in the background: exit() runs when nobody is inside and no reference
   * is held, and the memory is freed when it is proven that no thread can return into it. */
  MOLT_UNLOAD_LAZY = 4u,
};

/* Loads a module on the calling thread, without holding a lock over its code. `args` is
 * "name=value ..." or NULL. `timeout_ms` bounds waiting for another load of the same module or for
 * a provider; -1: 30 s. Returns 0 or: -EPERM loading is locked; -ENOENT unknown symbol, or no such
 * file; -EINVAL empty file, bad parameter, hook signature; -ENOEXEC not a module for this host;
 * -EEXIST the name is live; -EBUSY the name is going, or another load of it failed; -EDEADLK a
 * module loads itself from its own init; -ENOMEM; or what init or a notifier answered. After a
 * failure nothing of the module is left, save what is pinned (molt_last_error tells). */
MOLT_API int molt_load(const char* path, const char* args, uint32_t flags, int timeout_ms);
MOLT_API int molt_load_fd(int fd, const char* args, uint32_t flags, int timeout_ms);
/* Unloads. Waits up to `timeout_ms` (-1: 10 s) for threads inside the module's callbacks, then
 * gives up with -ETIMEDOUT, the module live again. After its exit() the rest of that time is for
 * threads that still have the module's code on their stacks, of whatever kind they are. -ENOENT,
 * -EAGAIN in use, -EBUSY not live or permanent. 0 also when the memory had to stay:
 * molt_last_error() then says "pinned: ...", or "resident: ..." with the threads that may return into
 * the module, or with the addresses in it that the process's memory still holds, as after a callback
 * that was not unregistered; molt_gc() looks again. In a process with a sanitizer the memory stays
 * mapped for a while, inaccessible, so that reports can name what was in it: molt(7). */
MOLT_API int molt_unload(const char* name, uint32_t flags, int timeout_ms);
/* Loads `path`, a newer version of live module `name`, beside it; hands the state over; switches
 * all hooks in one step; unloads the old. On any failure the old one goes on. -ETIMEDOUT: the pause
 * of its callbacks would have exceeded `timeout_ms` (-1: 1 s). */
MOLT_API int molt_replace(const char* name, const char* path, const char* args, uint32_t flags,
                          int timeout_ms);
/* disable: no callback of the module is entered any more; those inside finish. Does not wait. */
MOLT_API int molt_disable(const char* name);
MOLT_API int molt_enable(const char* name);
/* Frees what resident and pinned modules hold, where that is possible now, and unloads modules that
 * others have used and nobody needs any more: no callback in force, no reference, no dependant, no
 * notifier, no thread. Returns how many. */
MOLT_API int molt_gc(void);
/* From now on no module can be loaded or unloaded in this process. There is no way back. */
MOLT_API void molt_lock_loading(void);
/* Order of the callbacks of one hook (hook == NULL: of all hooks): those of the modules named in
 * `modules`, a comma list, in that order; then the others in load order. MOLT_ORDER_FIRST and _LAST
 * callbacks stay first and last. Unknown names are kept for when they come; of duplicates the first
 * counts. NULL: load order. -ENOENT unknown hook. */
MOLT_API int molt_hook_set_order(const char* hook, const char* modules);

/* ---------------------------------------------------------------------------------------------
 * References. The core counts; a module never needs to count for its own safety.
 * -------------------------------------------------------------------------------------------*/

enum molt_module_state {
  MOLT_MODULE_STATE_LIVE = 0,
  MOLT_MODULE_STATE_COMING = 1,
  MOLT_MODULE_STATE_GOING = 2,
  MOLT_MODULE_STATE_UNFORMED = 3,
};
/* True if a reference was taken: not while the module is going. NULL: true. */
MOLT_API bool molt_module_try_get(struct molt_module* module);
/* Only for a caller that already holds one. */
MOLT_API void molt_module_get(struct molt_module* module);
/* One put too many is refused with -EINVAL and logged; the count stays right. */
MOLT_API int molt_module_put(struct molt_module* module);
/* References held; -1 while going. */
MOLT_API int molt_module_refcount(const struct molt_module* module);
MOLT_API int molt_module_get_state(const struct molt_module* module);
/* Takes a reference to a live module by name; NULL if there is none. */
MOLT_API struct molt_module* molt_module_find_get(const char* name);

/* A thread that runs module code. The core holds a reference from before it runs until after it
 * has left the module. */
struct molt_thread;
enum molt_thread_flags {
  MOLT_THREAD_STOPPABLE = 1u, /* unload may ask it to stop instead of being refused */
};
/* `owner` is molt_this_module. 0 or -EBUSY (going), -ENOMEM, -EAGAIN. `thread` may be NULL. */
MOLT_API int molt_thread_start(struct molt_module* owner, const char* name, void (*run)(void*),
                               void* argument, uint32_t flags, struct molt_thread** thread);
/* Inside such a thread: whether it was asked to stop. */
MOLT_API bool molt_thread_should_stop(void);
/* Inside such a thread: sleeps at most timeout_ms, returns early and true when asked to stop. */
MOLT_API bool molt_thread_sleep(int timeout_ms);
/* Asks a thread to stop and waits until it has left the module; frees the handle. Of the calling
 * thread itself: asks only. */
MOLT_API void molt_thread_stop(struct molt_thread* thread);

enum { MOLT_NOTIFY_OK = 0 };
/* Told of every module's COMING, LIVE and GOING. At COMING a negative errno vetoes the load; other
 * answers are ignored. Higher priority first, then order of registration. `owner` is NULL for
 * the host; a module's notifiers vanish with it. */
struct molt_notifier {
  int (*notify)(struct molt_notifier* self, enum molt_module_state event,
                struct molt_module* module);
  int32_t priority;
  uint32_t reserved;
  struct molt_module* owner;
  void* context;
};
MOLT_API int molt_notifier_register(struct molt_notifier* notifier);
/* Waits until the notifier is not running on another thread. */
MOLT_API int molt_notifier_unregister(struct molt_notifier* notifier);

/* Structures that modules offer under a kind and a name ("codec", "gzip"), with their owner. A user
 * gets one together with a reference on its owner. A module's offers vanish with it. */
MOLT_API int molt_offer(struct molt_module* owner, const char* kind, const char* name,
                        const void* structure);
MOLT_API int molt_withdraw(struct molt_module* owner, const char* kind, const char* name);
MOLT_API const void* molt_acquire(const char* kind, const char* name, struct molt_module** owner);
MOLT_API void molt_release(struct molt_module* owner);

/* One line in the event log, prefixed "module: " when `module` is given. */
MOLT_API void molt_log(const struct molt_module* module, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

#ifdef __cplusplus
}
#endif
#endif
