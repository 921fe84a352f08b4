// runtime.cpp - puts the layers together: start-up, fork, and the C interface of a host.

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/single_threaded.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "arch/x86_64/text.hpp"
#include "base/barrier.hpp"
#include "base/descriptor_room.hpp"
#include "base/directory.hpp"
#include "base/fd.hpp"
#include "base/last_error.hpp"
#include "base/log.hpp"
#include "control/control.hpp"
#include "hook/registry.hpp"
#include "interpose/functions.hpp"
#include "livepatch/engine.hpp"
#include "module/manager.hpp"
#include "threads/census.hpp"
#include "threads/own_thread.hpp"
#include "threads/record.hpp"

namespace molt {
namespace {

constexpr const char* agent_variable = "MOLT_AGENT";
constexpr const char* children_variable = "MOLT_AGENT_CHILDREN";
constexpr const char* preload_variable = "LD_PRELOAD";

// --- fork -----------------------------------------------------------------------------------

// Always in this order; nothing below takes a lock of something above.
void before_fork() {
  livepatch::before_fork();
  module::before_fork();
  interpose::before_fork();
  hooks::before_fork();
  threads::census_before_fork();
  log::before_fork();
  DescriptorRoom::before_fork();
}
void after_fork_parent() {
  DescriptorRoom::after_fork(false);
  log::after_fork();
  threads::census_after_fork(false);
  hooks::after_fork(false);
  interpose::after_fork(false);
  module::after_fork(false);
  livepatch::after_fork(false);
}
void after_fork_child() {
  DescriptorRoom::after_fork(true);
  log::after_fork();
  threads::census_after_fork(true);
  hooks::after_fork(true);
  interpose::after_fork(true);
  module::after_fork(true);
  livepatch::after_fork(true);
  control::after_fork_child();
}

// What a failing init may leave of its patch has this long to be taken back.
constexpr int take_back_ms = 2000;
constexpr module::PatchHooks patch_hooks = {
    livepatch::module_coming,
    livepatch::module_going,
    [](molt_module* module) { livepatch::owner_failed(module, Deadline::in_ms(take_back_ms)); },
    livepatch::enable,
    livepatch::original_bytes,
    livepatch::module_record};

// Before any constructor of the host that could register or call a hook.
__attribute__((constructor(101))) void set_up() {
  barrier_setup();
  // What every change of code needs. In a process with threads it takes 10 ms, and is done by the first that
  // wants it.
  if (__libc_single_threaded) arch::text_setup();
  threads::setup();
  last_error_setup();
  pthread_atfork(before_fork, after_fork_parent, after_fork_child);
  module::set_observer(control::observer());
  module::set_patch_hooks(&patch_hooks);
  livepatch::set_observer(control::patch_observer());
  // In this order: the first asks the second.
  control::on_leave([] {
    livepatch::stop_worker();
    livepatch::stop_watching();
    threads::stop_census();
  });
}

// What was added to the environment is taken out of it.
void leave_no_trace(const std::string& path) {
  unsetenv(agent_variable);
  if (const char* list = getenv(preload_variable)) {
    std::string rest = list;
    if (rest.rfind(path, 0) == 0) rest.erase(0, path.size());
    if (!rest.empty() && rest[0] == ':') rest.erase(0, 1);
    if (rest.empty()) {
      unsetenv(preload_variable);
    } else {
      setenv(preload_variable, rest.c_str(), 1);
    }
  }
}

// `molt run` starts a program with this library in LD_PRELOAD, its path in MOLT_AGENT. What the program
// starts in turn gets neither, unless it was asked for (MOLT_AGENT_CHILDREN). Threads may be started from here: the C library is set up, and no other
// object of this one has a constructor that it would need.
__attribute__((constructor)) void start_in_program() {
  const char* given = secure_getenv(agent_variable);
  if (given == nullptr) return;
  if (secure_getenv(children_variable) == nullptr) leave_no_trace(given);
  // Now, while the process may still look at itself: a server gives that right up with its privileges. If it
  // has when the census would end, that stays.
  threads::let_census_end(control::agent_idle_ms);
  static_cast<void>(threads::start_census());
  if (molt_start_agent() != 0) {
    const std::string why = std::string("molt: the program runs without it: ") + molt_last_error();
    std::fputs((why + "\n").c_str(), stderr);
  }
}

__attribute__((destructor)) void tear_down() { remove_process_directory(); }

std::vector<std::string> split(const char* list) {
  std::vector<std::string> parts;
  std::string part;
  for (const char* c = list;; ++c) {
    if (*c == ',' || *c == '\0') {
      if (!part.empty()) parts.push_back(part);
      part.clear();
      if (*c == '\0') return parts;
    } else if (*c != ' ') {
      part += *c;
    }
  }
}

}  // namespace
}  // namespace molt

using namespace molt;

extern "C" int molt_start(const molt_options* options) {
  control::Options o;
  if (options != nullptr) {
    if (options->size != sizeof(molt_options)) {
      return answer(fail(EINVAL, "molt_options of another version: rebuild the host"));
    }
    if (options->name) o.name = options->name;
    if (options->directory) o.directory = options->directory;
    if (options->log_prefix) log::set_prefix(options->log_prefix);
    o.delay_release_ms = options->delay_release_ms;
  }
  // Now, while the process may still look at itself: a server gives that right up with its privileges.
  // A failure is told by whoever needs a proof.
  static_cast<void>(threads::start_census());
  module::set_directory(o.directory);
  return answer(control::start(o));
}

extern "C" int molt_start_agent() {
  threads::let_census_end(control::agent_idle_ms);
  control::Options o;
  o.is_agent = true;
  module::set_directory(o.directory);
  return answer(control::start(o));
}

extern "C" void molt_stop() { control::stop(); }

extern "C" const char* molt_last_error() { return last_error(); }

extern "C" int molt_load_fd(int fd, const char* args, std::uint32_t flags, int timeout_ms) {
  threads::clean_stack_below();
  if (fd < 0) return answer(fail(EBADF, "%d is no descriptor", fd));
  module::LoadRequest request;
  request.fd = fd;
  request.path = "fd " + std::to_string(fd);
  request.args = args ? args : "";
  request.force = (flags & MOLT_LOAD_FORCE) != 0;
  request.probe = (flags & MOLT_LOAD_PROBE) != 0;
  request.timeout_ms = timeout_ms;
  if (flags & ~std::uint32_t{MOLT_LOAD_FORCE | MOLT_LOAD_PROBE}) {
    return answer(fail(EINVAL, "unknown load flag %#x", flags));
  }
  return answer(module::load(request));
}

extern "C" int molt_load(const char* path, const char* args, std::uint32_t flags, int timeout_ms) {
  threads::clean_stack_below();
  if (path == nullptr) return answer(fail(EINVAL, "no path given"));
  module::LoadRequest request;
  request.path = path;
  request.args = args ? args : "";
  request.force = (flags & MOLT_LOAD_FORCE) != 0;
  request.probe = (flags & MOLT_LOAD_PROBE) != 0;
  request.timeout_ms = timeout_ms;
  if (flags & ~std::uint32_t{MOLT_LOAD_FORCE | MOLT_LOAD_PROBE}) {
    return answer(fail(EINVAL, "unknown load flag %#x", flags));
  }
  return answer(module::load(request));
}

extern "C" int molt_unload(const char* name, std::uint32_t flags, int timeout_ms) {
  threads::clean_stack_below();
  module::UnloadRequest request;
  request.name = name ? name : "";
  request.resident = (flags & MOLT_UNLOAD_RESIDENT) != 0;
  request.ignore_pointers = (flags & MOLT_UNLOAD_IGNORE_POINTERS) != 0;
  request.timeout_ms = timeout_ms;
  request.lazy = (flags & MOLT_UNLOAD_LAZY) != 0;
  if (flags &
      ~std::uint32_t{MOLT_UNLOAD_LAZY | MOLT_UNLOAD_RESIDENT | MOLT_UNLOAD_IGNORE_POINTERS}) {
    return answer(fail(EINVAL, "unknown unload flag %#x", flags));
  }
  auto report = module::unload(request);
  if (!report) return answer(report.error());
  succeed();
  if (!module::is_gone(report->fate)) {
    set_last_error((std::string(module::to_text(report->fate)) + ": " + report->reason).c_str());
  }
  return 0;
}

extern "C" int molt_replace(const char* name, const char* path, const char* args,
                            std::uint32_t flags, int timeout_ms) {
  threads::clean_stack_below();
  if (path == nullptr) return answer(fail(EINVAL, "no path given"));
  Fd fd(open(path, O_RDONLY | O_CLOEXEC));
  if (!fd) return answer(fail_errno(errno, "cannot open %s", path));
  module::ReplaceRequest request;
  request.name = name ? name : "";
  request.fd = fd.get();
  request.path = path;
  request.args = args ? args : "";
  request.force = (flags & MOLT_LOAD_FORCE) != 0;
  request.timeout_ms = timeout_ms;
  if (flags & ~std::uint32_t{MOLT_LOAD_FORCE}) {
    return answer(fail(EINVAL, "unknown replace flag %#x", flags));
  }
  auto report = module::replace(request);
  if (!report) return answer(report.error());
  succeed();
  if (!module::is_gone(report->old)) {
    set_last_error((std::string(module::to_text(report->old)) + ": " + report->reason).c_str());
  }
  return 0;
}

extern "C" int molt_disable(const char* name) {
  return answer(module::set_enabled(name ? name : "", false));
}
extern "C" int molt_enable(const char* name) {
  return answer(module::set_enabled(name ? name : "", true));
}

extern "C" int molt_gc() {
  threads::clean_stack_below();
  auto report = module::gc(false);
  succeed();
  return static_cast<int>(report.freed.size());
}

extern "C" void molt_lock_loading() { module::lock_loading(); }

extern "C" int molt_hook_set_order(const char* hook, const char* modules) {
  hooks::Order order;
  order.given = modules != nullptr;
  if (modules) order.modules = split(modules);
  return answer(hooks::set_order(hook ? hook : "", order));
}

extern "C" void molt_log(const molt_module* module, const char* format, ...) {
  char text[900];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  log::line(module && module->name ? module->name : "", "%s", text);
}

extern "C" const void* molt_callback_failed(const molt_callback* callback, const char* what) {
  const molt_hook_info* info = callback->bound;
  bool closed = info->on_exception == MOLT_FAIL_CLOSED;
  module::callback_threw(callback, what, closed);
  return closed ? info->exception_result : info->default_result;
}
