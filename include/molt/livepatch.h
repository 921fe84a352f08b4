/* livepatch.h - replacing functions of a running process by those of a module.
 *
 * A module lists the functions it replaces, and turns the list on from its init:
 *
 *     #include <molt/module.h>
 *     #include <molt/livepatch.h>
 *     static int new_parse(const char* text) { ... }
 *     static const struct molt_patch_func funcs[] = {{"parse", 0, (molt_fn)new_parse, 0, 0}, {0}};
 *     static const struct molt_patch_object objects[] = {{NULL, funcs, {0}}, {0}};
 *     static const struct molt_patch patch = {sizeof patch, 0, objects, NULL};
 *     static int start(void) { return molt_patch_enable(&molt_this_module, &patch); }
 *     static void finish(void) {}
 *     MOLT_MODULE("fix_parse", "1.0", "MIT", "parse() checks its length")
 *     MOLT_LIVEPATCH_MODULE
 *     MOLT_INIT(start)
 *     MOLT_EXIT(finish)
 *
 *     $ molt apply -p PID fix_parse.so       $ molt revert -p PID fix_parse
 *
 * Every thread changes over by itself, at a moment when none of the functions concerned is on its
 * stack: within one activation of them it sees only old versions or only new ones. No thread is
 * stopped or woken. One that keeps running while a function's first bytes are replaced, and that cannot
 * be sampled, gets a signal that only a running thread can get. Until all have changed over the patch is in
 * *transition*; one that sleeps inside an old function holds it up (`molt blocking` names it), for as long
 * as it sleeps.
 * Meanwhile the transition can be reversed, or forced.
 *
 * The semantics are those of the kernel's livepatch: stacking, disabling in any order, atomic
 * replacement, callbacks, system states, shadow variables. docs/design/livepatch.md says where they
 * differ and why.
 *
 * The core copies the lists; nothing of the module is looked at after molt_patch_enable() returned
 * but the functions themselves, the callbacks and the states' data. While the patch is enabled or in
 * transition it holds one reference on its module.
 *
 * Not to be called from signal handlers, save the functions of shadow variables that say so.
 */
#ifndef MOLT_LIVEPATCH_H
#define MOLT_LIVEPATCH_H

#include <molt/molt.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------------------------------------
 * Patches
 * -------------------------------------------------------------------------------------------*/

enum molt_patch_flags {
  /* Replaces all patches that are installed: functions that it leaves out go back to their
   * originals, in the same transition. */
  MOLT_PATCH_REPLACE = 1u,
  /* All threads take the new functions at once, wherever they are: no consistency. For changes that
   * need none, or emergencies. The module can be unloaded only once no thread is proven inside. */
  MOLT_PATCH_IMMEDIATE = 2u,
};
enum molt_patch_func_flags {
  /* A thread inside the old version of this function does not hold the transition up. */
  MOLT_PATCH_FUNC_IMMEDIATE = 1u,
};

/* One function. A list ends with old_name == NULL. */
struct molt_patch_func {
  const char* old_name;   /* as the linker knows it: mangled; may be static */
  unsigned long position; /* which of several of that name in the object's symbol table, from 1; 0:
                           * the name is unique */
  molt_fn new_func;
  uint32_t flags;
  uint32_t reserved;
};

/* What a callback is about. */
struct molt_patch_target {
  const char* object;         /* NULL: the program */
  struct molt_module* module; /* the object, if it is a Molt module: molt_module_get_state() says
                               * whether it is coming, live or going; else NULL */
  struct molt_module* patch;  /* the patch's own module */
};
/* Run on the thread that does the step, without locks, in the order of the objects, only for objects
 * that are loaded. They must not start an operation on patches (-EDEADLK). Any may be NULL. */
struct molt_patch_callbacks {
  /* Before the object's functions are replaced. Other than 0 cancels everything: a negative errno is
   * the answer of the operation, a positive number counts as -EINVAL. What it said last (molt_log(target->patch, ...))
   * is in the error's text. */
  int (*pre_patch)(const struct molt_patch_target* target);
  /* After the last thread has changed over. */
  void (*post_patch)(const struct molt_patch_target* target);
  /* Before they are put back; not if post_patch has not run. */
  void (*pre_unpatch)(const struct molt_patch_target* target);
  /* After that; exactly if pre_patch has succeeded. */
  void (*post_unpatch)(const struct molt_patch_target* target);
};

/* One object: the program, a Molt module by name, or a shared library by soname, file name or path.
 * One that is not loaded is patched when it is, before its constructors run where that is possible
 * (docs/design/livepatch.md). A list ends with funcs == NULL. */
struct molt_patch_object {
  const char* name; /* NULL: the program */
  const struct molt_patch_func* funcs;
  struct molt_patch_callbacks callbacks;
};

/* A change of the process that functions alone do not make, with its version. A patch is refused if
 * an installed one has a state of the same id with a higher version, or, if it replaces, a state that
 * it lacks. A list ends with id == 0. */
struct molt_patch_state {
  unsigned long id;
  unsigned int version;
  void* data; /* the patch's own */
};

struct molt_patch {
  uint32_t size; /* sizeof(struct molt_patch) */
  uint32_t flags;
  const struct molt_patch_object* objects;
  struct molt_patch_state* states; /* NULL: none */
};

/* ---------------------------------------------------------------------------------------------
 * Additions to a patch that `molt build` makes: `molt build --callbacks FILE.cpp` compiles FILE.cpp
 * and puts it into the patch file. There is no molt_patch_enable() in it: these sections name what
 * there is. molt-patch-file(5)
 * -------------------------------------------------------------------------------------------*/

struct molt_patch_callback {
  const char* object; /* NULL: the program; else as the patch file calls its target */
  struct molt_patch_callbacks callbacks;
};
#define MOLT_PATCH_ITEM_(name) __attribute__((used, retain, section(name), aligned(8)))
#define MOLT_PATCH_CAT2_(a, b) a##b
#define MOLT_PATCH_CAT_(a, b) MOLT_PATCH_CAT2_(a, b)
/* Once for an object: MOLT_PATCH_CALLBACKS(NULL, prepare, NULL, NULL, restore) */
#define MOLT_PATCH_CALLBACKS(object, pre_patch, post_patch, pre_unpatch, post_unpatch) \
  static struct molt_patch_callback MOLT_PATCH_CAT_(molt_patch_callback_, __COUNTER__) \
      MOLT_PATCH_ITEM_(".molt.callbacks") = {object,                                   \
                                             {pre_patch, post_patch, pre_unpatch, post_unpatch}};
#define MOLT_PATCH_STATE(id, version, data)                                      \
  static struct molt_patch_state MOLT_PATCH_CAT_(molt_patch_state_, __COUNTER__) \
      MOLT_PATCH_ITEM_(".molt.states") = {id, version, data};

/* Only from the init of `owner`, which must be marked MOLT_LIVEPATCH_MODULE. Returns 0 when the
 * transition has begun; it may be over by then, or go on for as long as a thread sleeps in an old
 * function. If init fails afterwards the patch is taken back.
 * -EINVAL: a list is malformed, a function was not found or cannot be replaced (molt_last_error()
 * names it), states do not fit; -EEXIST: a function or object is listed twice; -EBUSY: another
 * transition is under way (molt_last_error() says which, and who holds it up), or something else owns
 * a function's entry; -ENODEV: not from init; or what pre_patch answered. Nothing remains. */
MOLT_API int molt_patch_enable(struct molt_module* owner, const struct molt_patch* patch);

/* Waits until no transition is under way. 0, or -ETIMEDOUT: molt_last_error() says who holds it up. */
MOLT_API int molt_patch_wait(int timeout_ms);
/* 0 disables an enabled patch, and reverses one in transition; 1 reverses one that is being disabled.
 * Returns when the transition has begun. -ENOENT, -EINVAL as already so, -EBUSY another transition. */
MOLT_API int molt_patch_set_enabled(const char* name, int enabled);
/* All threads that have not changed over take the new state at the next try, wherever they are. What
 * may still be in use stays in memory until it is proven free. -EINVAL: not in transition. */
MOLT_API int molt_patch_force(const char* name);
/* Of a thread in the transition under way: 1 patched, 0 not patched, -1 no transition. -ESRCH. */
MOLT_API int molt_patch_thread_state(int tid);

/* Called for every thread that still holds up a transition, 15 seconds after it began and every 15
 * seconds after that, on a runtime thread: a host that knows how to wake its threads can do so.
 * Logs "livepatch: signaling remaining tasks" the first time. NULL: nobody is woken. */
MOLT_API void molt_patch_set_poke(void (*poke)(int tid));

/* --- states ---------------------------------------------------------------------------------*/

/* The entry of `owner`'s own patch, or NULL. */
MOLT_API struct molt_patch_state* molt_patch_get_state(struct molt_module* owner, unsigned long id);
/* In a callback: the newest entry among the patches that were there before the one in transition, or
 * NULL; NULL and a line in the log when no transition is under way. */
MOLT_API struct molt_patch_state* molt_patch_get_prev_state(unsigned long id);

/* ---------------------------------------------------------------------------------------------
 * Shadow variables: data attached to any object by its address and an id. They belong to nobody:
 * they stay when a patch goes, until they are freed.
 *
 * Costs: get is a hash lookup without a lock, about 5 ns.
 * -------------------------------------------------------------------------------------------*/

/* 0, or the variable is not made. Runs before anybody can see it, under a lock: it must not call
 * functions of shadow variables other than molt_shadow_get(). */
typedef int (*molt_shadow_ctor)(void* object, void* data, void* argument);
/* Runs, under that lock too, when nobody can find it any more. */
typedef void (*molt_shadow_dtor)(void* object, void* data);

/* The data, or NULL. Async-signal-safe. It stays valid until somebody frees it. */
MOLT_API void* molt_shadow_get(const void* object, unsigned long id);
/* A new one, zeroed, then constructed. NULL: it exists already (logged), no memory, or the
 * constructor failed (logged). */
MOLT_API void* molt_shadow_alloc(void* object, unsigned long id, size_t bytes,
                                 molt_shadow_ctor constructor, void* argument);
/* The one that exists, whatever its size, or a new one. One constructor call for each that is made. */
MOLT_API void* molt_shadow_get_or_alloc(void* object, unsigned long id, size_t bytes,
                                        molt_shadow_ctor constructor, void* argument);
/* Without effect if there is none. */
MOLT_API void molt_shadow_free(void* object, unsigned long id, molt_shadow_dtor destructor);
/* Those of all objects with this id. */
MOLT_API void molt_shadow_free_all(unsigned long id, molt_shadow_dtor destructor);

/* Marks a module as one that may enable a patch. */
#define MOLT_LIVEPATCH_NOTE_ "livepatch=Y"
#ifndef __cplusplus
#define MOLT_LIVEPATCH_MODULE MOLT_NOTE_(MOLT_LIVEPATCH_NOTE_)
#endif

#ifdef __cplusplus
}
#endif
#endif
