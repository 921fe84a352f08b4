#include "control/control.hpp"

#include <atomic>
#include <cerrno>
#include <memory>
#include <mutex>

#include "base/directory.hpp"
#include "base/log.hpp"
#include "control/content.hpp"
#include "control/object.hpp"
#include "control/server.hpp"
#include "control/start.hpp"
#include "livepatch/engine.hpp"
#include "threads/own_thread.hpp"

namespace molt::control {
namespace {

// Of one process. Never freed: in the child of a fork the parent's may be locked for ever.
struct State {
  const State* parents = nullptr;  // for leak checkers, which shall not take it for lost

  std::mutex mutex;
  std::unique_ptr<Server> server;  // null: not running
  bool is_stopping = false;
};
std::atomic<State*> current{nullptr};

State& state() {
  State* known = current.load(std::memory_order_acquire);
  if (known != nullptr) return *known;
  auto* fresh = new State;
  if (current.compare_exchange_strong(known, fresh, std::memory_order_acq_rel,
                                      std::memory_order_acquire)) {
    return *fresh;
  }
  delete fresh;
  return *known;
}

}  // namespace

Status start_with(const Options& options, const Limits& limits) {
  State& s = state();
  std::lock_guard lock(s.mutex);
  if (s.server) return s.server->mend();
  if (s.is_stopping) return fail(EBUSY, "the control socket is being closed by another thread");

  set_host_name(options.name);
  set_delay_release_ms(options.delay_release_ms);
  livepatch::set_delay_release_ms(options.delay_release_ms);
  auto server = std::make_unique<Server>(options.directory, limits,
                                         options.is_agent ? Role::agent : Role::host);
  if (Status ok = server->start(); !ok) return ok;
  log::set_listener(on_log_line);
  set_delay_listener(ring);
  s.server = std::move(server);
  return {};
}

Status start(const Options& options) {
  Limits limits;
  if (options.is_agent) limits.workers.idle_ms = agent_idle_ms;
  return start_with(options, limits);
}

void stop() {
  State& s = state();
  std::unique_ptr<Server> server;
  {
    std::lock_guard lock(s.mutex);
    if (!s.server) return;
    if (s.server->is_worker()) {
      log::line("",
                "molt: a module that was asked for from outside cannot stop the control socket");
      return;
    }
    if (s.server->is_agent()) {
      log::line("", "molt: what was put in from outside ends by `molt detach`");
      return;
    }
    server = std::move(s.server);
    s.is_stopping = true;
  }
  // Without the lock: what is under way may ask us something.
  server->stop();
  server.reset();
  std::lock_guard lock(s.mutex);
  s.is_stopping = false;
}

namespace {

std::atomic<void (*)()> ends_with_it{nullptr};

// Its only caller is the thread that leave() starts. The server cannot be stopped by one of its own
// workers, which is what an asker's request runs on.
void* leave_now(void*) {
  State& s = state();
  std::unique_ptr<Server> server;
  {
    std::lock_guard lock(s.mutex);
    server = std::move(s.server);
    s.is_stopping = true;
  }
  if (server) server->stop_when_quiet();
  server.reset();
  module::set_gc_interval(0);
  if (void (*end)() = ends_with_it.load(std::memory_order_acquire)) end();
  remove_process_directory();
  module::open_again();
  std::lock_guard lock(s.mutex);
  s.is_stopping = false;
  return nullptr;
}

void expect_stop(bool on) {
  State& s = state();
  std::lock_guard lock(s.mutex);
  if (s.server) s.server->expect_stop(on);
}

}  // namespace

void on_leave(void (*end)()) { ends_with_it.store(end, std::memory_order_release); }

Status leave(bool dry_run) {
  auto closed = module::close_if_empty(dry_run);
  if (!closed) return pass(closed);
  // Another one that leaves would do so again later, under a server that was started since.
  if (dry_run || !*closed) return {};
  expect_stop(true);
  auto thread = threads::start_thread("molt-leaves", threads::default_stack, leave_now, nullptr);
  if (!thread) {
    expect_stop(false);
    module::open_again();
    return pass(thread);
  }
  pthread_detach(*thread);
  return {};
}

std::string socket_path() {
  State& s = state();
  std::lock_guard lock(s.mutex);
  return s.server ? s.server->socket_path() : "";
}

const module::Observer* observer() {
  static_cast<void>(tree());
  return &tree_observer();
}

const livepatch::Observer* patch_observer() { return &tree_patch_observer(); }

void after_fork_child() {
  auto* fresh = new State;
  fresh->parents = current.load(std::memory_order_acquire);
  current.store(fresh, std::memory_order_release);
  forget_process_directory();
  forget_tree();
  forget_objects();
}

}  // namespace molt::control
