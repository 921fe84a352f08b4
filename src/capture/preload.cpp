// libmolt-capture.so: sends every compiler that a build starts through `molt`'s wrapper, by standing in
// front of the exec functions of every process of the build (LD_PRELOAD).
//
// Roles      builder/workspace.cpp preloads it into the user's build command; the wrapper that it
//            starts is builder/capture.hpp's.
// State      The real functions, looked up when it is loaded. The environment tells the rest:
//            MOLT_CAPTURE_WRAPPER, and MOLT_CAPTURE_INSIDE for what the wrapper itself starts.
// Invariants E1 Between vfork and exec the child runs on its parent's memory: nothing here allocates,
//               locks or writes to a variable that is not on its own stack.
//            E2 What is no compiler is started exactly as it was asked for.
// Death      A build that clears its environment (env -i) is not seen from there on; the builder then
//            says that the patched source was not compiled.
// Checked by tests/builder/capture.sh
#include <alloca.h>
#include <dlfcn.h>
#include <errno.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern "C" char** environ;

namespace {

using Execve = int (*)(const char*, char* const*, char* const*);
using Spawn = int (*)(pid_t*, const char*, const posix_spawn_file_actions_t*,
                      const posix_spawnattr_t*, char* const*, char* const*);

Execve real_execve;
Execve real_execvpe;
Spawn real_spawn;
Spawn real_spawnp;

__attribute__((constructor)) void look_up() {
  real_execve = reinterpret_cast<Execve>(dlsym(RTLD_NEXT, "execve"));
  real_execvpe = reinterpret_cast<Execve>(dlsym(RTLD_NEXT, "execvpe"));
  real_spawn = reinterpret_cast<Spawn>(dlsym(RTLD_NEXT, "posix_spawn"));
  real_spawnp = reinterpret_cast<Spawn>(dlsym(RTLD_NEXT, "posix_spawnp"));
}

const char* variable(char* const* environment, const char* name) {
  const size_t length = strlen(name);
  for (; environment != nullptr && *environment != nullptr; ++environment) {
    if (strncmp(*environment, name, length) == 0 && (*environment)[length] == '=') {
      return *environment + length + 1;
    }
  }
  return nullptr;
}

const char* last_part(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash != nullptr ? slash + 1 : path;
}

// "gcc", "x86_64-linux-gnu-g++-12", "clang-14"; not "gcc-ar".
bool is_compiler(const char* path) {
  static const char* const names[] = {"cc", "gcc", "clang", "c++", "g++", "clang++", "c89", "c99"};
  const char* name = last_part(path);
  size_t length = strlen(name);
  size_t end = length;
  while (end > 0 && ((name[end - 1] >= '0' && name[end - 1] <= '9') || name[end - 1] == '.')) --end;
  if (end < length && end > 0 && name[end - 1] == '-') length = end - 1;
  for (const char* known : names) {
    const size_t bytes = strlen(known);
    if (length < bytes || strncmp(name + length - bytes, known, bytes) != 0) continue;
    if (length == bytes || name[length - bytes - 1] == '-') return true;
  }
  return false;
}

// Caches answer with an object of long ago, or compile elsewhere.
bool is_launcher(const char* path) {
  static const char* const names[] = {"ccache", "sccache", "distcc", "icecc"};
  const char* name = last_part(path);
  for (const char* known : names) {
    if (strcmp(name, known) == 0) return true;
  }
  return false;
}

// How many of the words before the compiler's own arguments go: 0 for a compiler by itself, 1 behind
// a launcher; -1 for what is no compiler at all.
int compiler_at(const char* path, char* const* arguments, char* const* environment) {
  if (variable(environment, "MOLT_CAPTURE_INSIDE") != nullptr) return -1;
  if (variable(environment, "MOLT_CAPTURE_WRAPPER") == nullptr) return -1;
  if (is_compiler(path)) return 0;
  if (is_launcher(path) && arguments[0] != nullptr && arguments[1] != nullptr &&
      is_compiler(arguments[1])) {
    return 1;
  }
  return -1;
}

size_t count_of(char* const* words) {
  size_t count = 0;
  while (words[count] != nullptr) ++count;
  return count;
}

// wrapper, "molt-capture", the compiler, its arguments
void rewrite(char** to, const char* path, char* const* arguments, size_t count, int skip) {
  static char name[] = "molt-capture";
  to[0] = name;
  to[1] = skip == 0 ? const_cast<char*>(path) : arguments[skip];
  size_t n = 2;
  for (size_t i = static_cast<size_t>(skip) + 1; i < count; ++i) to[n++] = arguments[i];
  to[n] = nullptr;
}

int start(Execve real, const char* path, char* const* arguments, char* const* environment) {
  const int skip = compiler_at(path, arguments, environment);
  if (skip < 0) return real(path, arguments, environment);
  const size_t count = count_of(arguments);
  char** words = static_cast<char**>(alloca((count + 3) * sizeof(char*)));
  rewrite(words, path, arguments, count, skip);
  return real_execve(variable(environment, "MOLT_CAPTURE_WRAPPER"), words, environment);
}

int start(Spawn real, pid_t* pid, const char* path, const posix_spawn_file_actions_t* actions,
          const posix_spawnattr_t* attributes, char* const* arguments, char* const* environment) {
  const int skip = compiler_at(path, arguments, environment);
  if (skip < 0) return real(pid, path, actions, attributes, arguments, environment);
  const size_t count = count_of(arguments);
  char** words = static_cast<char**>(alloca((count + 3) * sizeof(char*)));
  rewrite(words, path, arguments, count, skip);
  return real_spawn(pid, variable(environment, "MOLT_CAPTURE_WRAPPER"), actions, attributes, words,
                    environment);
}

// The arguments of execl and its like, up to the null pointer.
size_t count_of(const char* first, va_list rest) {
  size_t count = first != nullptr ? 1 : 0;
  if (first == nullptr) return 0;
  while (va_arg(rest, char*) != nullptr) ++count;
  return count;
}

void collect(char** to, const char* first, va_list rest, size_t count) {
  to[0] = const_cast<char*>(first);
  for (size_t i = 1; i < count; ++i) to[i] = va_arg(rest, char*);
  to[count] = nullptr;
}

}  // namespace

#define MOLT_EXPORT extern "C" __attribute__((visibility("default")))

MOLT_EXPORT int execve(const char* path, char* const* arguments, char* const* environment) {
  return start(real_execve, path, arguments, environment);
}

MOLT_EXPORT int execv(const char* path, char* const* arguments) {
  return start(real_execve, path, arguments, environ);
}

MOLT_EXPORT int execvpe(const char* file, char* const* arguments, char* const* environment) {
  return start(real_execvpe, file, arguments, environment);
}

MOLT_EXPORT int execvp(const char* file, char* const* arguments) {
  return start(real_execvpe, file, arguments, environ);
}

#define MOLT_COLLECT_ARGUMENTS(words)                                      \
  va_list rest;                                                            \
  va_start(rest, first);                                                   \
  const size_t count = count_of(first, rest);                              \
  va_end(rest);                                                            \
  char** words = static_cast<char**>(alloca((count + 1) * sizeof(char*))); \
  va_start(rest, first);                                                   \
  collect(words, first, rest, count)

MOLT_EXPORT int execl(const char* path, const char* first, ...) {
  MOLT_COLLECT_ARGUMENTS(words);
  va_end(rest);
  return start(real_execve, path, words, environ);
}

MOLT_EXPORT int execlp(const char* file, const char* first, ...) {
  MOLT_COLLECT_ARGUMENTS(words);
  va_end(rest);
  return start(real_execvpe, file, words, environ);
}

MOLT_EXPORT int execle(const char* path, const char* first, ...) {
  MOLT_COLLECT_ARGUMENTS(words);
  if (count != 0) (void)va_arg(rest, char*);
  char* const* environment = va_arg(rest, char* const*);
  va_end(rest);
  return start(real_execve, path, words, environment);
}

MOLT_EXPORT int posix_spawn(pid_t* pid, const char* path, const posix_spawn_file_actions_t* actions,
                            const posix_spawnattr_t* attributes, char* const* arguments,
                            char* const* environment) {
  return start(real_spawn, pid, path, actions, attributes, arguments, environment);
}

MOLT_EXPORT int posix_spawnp(pid_t* pid, const char* file,
                             const posix_spawn_file_actions_t* actions,
                             const posix_spawnattr_t* attributes, char* const* arguments,
                             char* const* environment) {
  return start(real_spawnp, pid, file, actions, attributes, arguments, environment);
}
