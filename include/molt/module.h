/* module.h - for modules written in C. C++ modules include <molt/module.hpp>, which builds on this.
 *
 *     #include <molt/module.h>
 *     static int no_dotfiles(const char* path, int flags) { return path[0] == '.' ? -13 : 0; }
 *     MOLT_MODULE("no_dotfiles", "1.0", "MIT", "refuses names that begin with a dot")
 *     MOLT_HOOK_C("files.open", "i32(const char*,i32)", no_dotfiles, MOLT_ORDER_NORMAL, 0)
 *
 * Signatures are written as molt::signature_of gives them (`molt hook list` shows those of a
 * process): i32, u64, f64, bool, char, void, `const T*`. C callbacks must not let a C++ exception
 * pass.
 *
 * The macros fill the sections molt_callbacks, molt_params, molt_exports and molt_imports, and the
 * ELF note that `molt info FILE` reads without loading the file.
 */
#ifndef MOLT_MODULE_H
#define MOLT_MODULE_H

#include <molt/molt.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MOLT_HIDDEN_ __attribute__((visibility("hidden")))
/* An explicit alignment keeps the compiler from raising it, which would tear holes in the array. */
#define MOLT_ITEM_(section_name) __attribute__((used, retain, section(section_name), aligned(8)))

/* Note records: name "Molt", type MOLT_NOTE_INFO, text "key=value", as many as there are items. */
#define MOLT_NOTE_INFO 1
#define MOLT_CAT2_(a, b) a##b
#define MOLT_CAT_(a, b) MOLT_CAT2_(a, b)
#define MOLT_NOTE_(text)                                                   \
  static const struct {                                                    \
    uint32_t name_bytes, text_bytes, type;                                 \
    char name[8];                                                          \
    char value[(sizeof(text) + 3) & ~(size_t)3];                           \
  } MOLT_CAT_(molt_note_, __COUNTER__)                                     \
      __attribute__((used, retain, section(".note.molt"), aligned(4))) = { \
          5, sizeof(text), MOLT_NOTE_INFO, "Molt", text};

/* The module's own descriptor: what molt_module_get() and the like take. Protected: another module's
 * or the host's symbol of that name can never take its place. */
extern struct molt_module molt_this_module __attribute__((visibility("protected")));

/* Optional functions of a module; MOLT_INIT and the others define them. */
MOLT_HIDDEN_ int molt_module_init(void) __attribute__((weak));
MOLT_HIDDEN_ void molt_module_exit(void) __attribute__((weak));
MOLT_HIDDEN_ int molt_module_save(struct molt_state* state) __attribute__((weak));
MOLT_HIDDEN_ int molt_module_restore(const struct molt_state* state) __attribute__((weak));
MOLT_HIDDEN_ extern const struct molt_state_info molt_module_state_info __attribute__((weak));

MOLT_HIDDEN_ extern struct molt_callback __start_molt_callbacks[] __attribute__((weak));
MOLT_HIDDEN_ extern struct molt_callback __stop_molt_callbacks[] __attribute__((weak));
MOLT_HIDDEN_ extern const struct molt_param __start_molt_params[] __attribute__((weak));
MOLT_HIDDEN_ extern const struct molt_param __stop_molt_params[] __attribute__((weak));
MOLT_HIDDEN_ extern const struct molt_export __start_molt_exports[] __attribute__((weak));
MOLT_HIDDEN_ extern const struct molt_export __stop_molt_exports[] __attribute__((weak));
MOLT_HIDDEN_ extern const struct molt_import __start_molt_imports[] __attribute__((weak));
MOLT_HIDDEN_ extern const struct molt_import __stop_molt_imports[] __attribute__((weak));

#define MOLT_MODULE_BODY_(name_, version_, license_, description_)                       \
  MOLT_NOTE_("name=" name_)                                                              \
  MOLT_NOTE_("version=" version_)                                                        \
  MOLT_NOTE_("license=" license_)                                                        \
  MOLT_NOTE_("description=" description_)                                                \
  MOLT_NOTE_("magic=" MOLT_MAGIC)                                                        \
  __attribute__((visibility("protected"), used)) struct molt_module molt_this_module = { \
      sizeof(struct molt_module),                                                        \
      MOLT_ABI,                                                                          \
      MOLT_MAGIC,                                                                        \
      name_,                                                                             \
      version_,                                                                          \
      license_,                                                                          \
      description_,                                                                      \
      &molt_module_state_info,                                                           \
      molt_module_init,                                                                  \
      molt_module_exit,                                                                  \
      molt_module_save,                                                                  \
      molt_module_restore,                                                               \
      __start_molt_callbacks,                                                            \
      __stop_molt_callbacks,                                                             \
      __start_molt_params,                                                               \
      __stop_molt_params,                                                                \
      __start_molt_exports,                                                              \
      __stop_molt_exports,                                                               \
      __start_molt_imports,                                                              \
      __stop_molt_imports,                                                               \
      NULL};

#ifndef __cplusplus
/* Once in each module. The licence decides which restricted exports it may use, and taints. */
#define MOLT_MODULE(name_, version_, license_, description_) \
  MOLT_MODULE_BODY_(name_, version_, license_, description_)
/* int f(void): 0 or negative errno. The module goes live, and its callbacks in force, after it. */
#define MOLT_INIT(f) \
  int molt_module_init(void) { return f(); }
/* void f(void): when it runs, no thread is in a callback and none can enter. */
#define MOLT_EXIT(f) \
  void molt_module_exit(void) { f(); }
#endif

#define MOLT_HOOK_C(hook_, signature_, fn_, order_, flags_)          \
  MOLT_NOTE_("hook=" hook_ " " signature_)                           \
  static struct molt_callback MOLT_CAT_(molt_callback_, __COUNTER__) \
      MOLT_ITEM_("molt_callbacks") = {                               \
          hook_, signature_, 0, (molt_fn)(fn_), order_, flags_, __COUNTER__, 0, NULL};

/* An int parameter "name=value" with the variable that holds it. */
#define MOLT_PARAM_C(variable_, description_, flags_)                                            \
  MOLT_NOTE_("parm=" #variable_ ":int:" description_)                                            \
  static const struct molt_param MOLT_CAT_(molt_param_, variable_) MOLT_ITEM_("molt_params") = { \
      #variable_,         "int",      description_, molt_param_set_int,                          \
      molt_param_get_int, &variable_, flags_,       0};

#define MOLT_EXPORT_C(symbol_, signature_, flags_)                 \
  MOLT_NOTE_("export=" #symbol_ " " signature_)                    \
  static const struct molt_export MOLT_CAT_(molt_export_, symbol_) \
      MOLT_ITEM_("molt_exports") = {#symbol_, signature_, 0, (void*)&symbol_, flags_, 0};

/* `pointer_` is a variable of the right pointer type; it is set before init. */
#define MOLT_IMPORT_C(pointer_, symbol_, signature_, flags_)       \
  MOLT_NOTE_("import=" #symbol_ " " signature_)                    \
  static const struct molt_import MOLT_CAT_(molt_import_, symbol_) \
      MOLT_ITEM_("molt_imports") = {#symbol_, signature_, 0, (void**)&pointer_, flags_, 0};

#ifdef __cplusplus
}
#endif
#endif
