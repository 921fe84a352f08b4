#include "cli/agent.hpp"

#include "attach/masks.hpp"
#include "cli/client.hpp"
#include "cli/failure.hpp"
#include "cli/lender.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <semaphore>
#include <thread>

namespace molt::cli {
namespace {

constexpr int default_timeout_ms = 10'000;

ErrorClass class_of(int code) {
  switch (code) {
    case ESRCH:
      return ErrorClass::missing;
    case EPERM:
    case EACCES:
      return ErrorClass::permission;
    case ENOEXEC:
      return ErrorClass::refused;
    case EAGAIN:
    case ETIMEDOUT:
      return ErrorClass::stalled;
    default:
      return ErrorClass::failed;
  }
}

// The layer below knows numbers only, and what it says of a filter or a thread has none.
std::string naming(const Process& process, std::string text) {
  const std::string number = fmt::format("process {} ", process.pid);
  if (text.starts_with(number)) return describe(process) + text.substr(number.size() - 1);
  if (text.find(number) != text.npos) return text;
  return fmt::format("{} cannot be attached to: {}", describe(process), text);
}

}  // namespace

std::string runtime_path() {
  namespace fs = std::filesystem;
  constexpr const char* name = "libmolt.so.0";
  if (const char* given = std::getenv("MOLT_RUNTIME")) {
    if (fs::exists(given)) return fs::canonical(given).string();
    fail(ErrorClass::missing, ENOENT, "there is no {}, which MOLT_RUNTIME names", given);
  }
  std::error_code error;
  const fs::path here = fs::read_symlink("/proc/self/exe", error).parent_path();
  for (const char* folder : {"../lib", "../lib/x86_64-linux-gnu", "../lib64", "."}) {
    const fs::path path = here / folder / name;
    if (fs::exists(path, error)) return fs::canonical(path).string();
  }
  fail(ErrorClass::missing, ENOENT,
       "{} is not where this program was installed; name it in MOLT_RUNTIME", name);
}

attach::Report attach_to(const Process& process, const Options& options) {
  if (process.inner_pid == 0) {
    fail(ErrorClass::missing, ESRCH, "there is no process {}", process.pid);
  }
  const attach::Options how{runtime_path(),
                            options.timeout_s ? options.timeout_ms() : default_timeout_ms};
  // Most of the time one side waits for the other's next look; but many more of them at once than there
  // are processors only hold each other up.
  static std::counting_semaphore<> turns(
      4 * std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
  turns.acquire();
  auto report = attach::attach(process.pid, how);
  turns.release();
  if (!report) {
    const Error& error = report.error();
    throw make_failure(class_of(error.code), error.code, naming(process, error.detail));
  }
  return *report;
}

void attach_if_absent(Session& session) {
  const Process& process = session.process();
  if (process.inner_pid == 0 || session.options().dry_run) return;
  const ControlSocket socket = SocketFinder().find(process);
  if (socket.state != ControlSocket::absent && !is_left_behind(socket)) return;
  const attach::Report report = attach_to(process, session.options());
  if (session.options().verbose) {
    session.note(fmt::format("attached: {}, one thread stopped for {:.0f} us",
                             to_text(report.found), report.stopped_us));
  }
}

void open_traps(Session& session) {
  if (session.options().dry_run) return;
  const std::vector<attach::Thread> threads = attach::blocking_traps(session.process().pid);
  if (threads.empty() || !attach::open_traps(threads) || !session.options().verbose) return;
  for (const attach::Thread& thread : threads) {
    session.note(fmt::format("thread {} ({}) no longer blocks SIGTRAP", thread.tid, thread.name));
  }
}

Json with_traps_open(Session& session, const std::function<Json()>& change) {
  using std::chrono::milliseconds;
  constexpr int most_tries = 4;
  const Options& options = session.options();
  const Deadline deadline =
      Deadline::after(milliseconds(options.timeout_s ? options.timeout_ms() : answer_ms));
  for (int tries = 1;; ++tries) {
    open_traps(session);
    // A refusal that took this long has waited for a thread that did not get a processor.
    const Deadline at_once = Deadline::after(milliseconds(1000));
    try {
      Json reply = change();
      // What was refused could not be proven unused then, and was kept.
      if (tries > 1) static_cast<void>(session.call(wire::method::gc));
      return reply;
    } catch (const Failure& failure) {
      if (failure.code != EBUSY || tries == most_tries) throw;
      const bool has_waited = at_once.remaining_ms() == 0 && deadline.remaining_ms() != 0;
      if (needs_loans(session.process())) {
        session.hang_up();  // who was born since is lent with the next connection
      } else if (!has_waited && attach::blocking_traps(session.process().pid).empty()) {
        throw;
      }
    }
  }
}

void open_traps_for(Session& session, const std::string& module) {
  if (attach::blocking_traps(session.process().pid).empty()) return;
  for (const Json& hook : session.call(wire::method::hook_list).at("hooks")) {
    if (hook.at("name").get<std::string>().find(':') == std::string::npos) continue;
    for (const Json& callback : hook.at("callbacks")) {
      if (callback.at("module") == module) return open_traps(session);
    }
  }
}

const char* to_text(attach::Found found) {
  switch (found) {
    case attach::Found::nothing:
      return "loaded";
    case attach::Found::not_started:
      return "started";
    case attach::Found::running:
      break;
  }
  return "running";
}

}  // namespace molt::cli
