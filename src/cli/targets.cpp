#include "cli/targets.hpp"

#include "cli/agent.hpp"
#include "cli/lender.hpp"
#include "cli/print.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <mutex>
#include <set>
#include <thread>
#include <variant>

namespace molt::cli {
namespace {

// Threads only wait for their processes, so there may be many more of them than cores.
constexpr std::size_t threads_max = 64;
// TASK_COMM_LEN without its NUL: longer names are cut off by the kernel.
constexpr std::size_t comm_max = 15;

std::string listing(const std::vector<Seen>& all) {
  std::string text;
  for (const Seen& seen : all) {
    text += fmt::format("{}{} ({})", text.empty() ? "" : ", ", seen.process.pid, seen.process.comm);
  }
  return text;
}

bool runs(const Process& process, const std::string& exe) {
  struct stat theirs {};
  struct stat named {};
  const std::string link = fmt::format("/proc/{}/exe", process.pid);
  // The file itself, not its name: it may have another path in the process's mount namespace.
  return ::stat(link.c_str(), &theirs) == 0 && ::stat(exe.c_str(), &named) == 0 &&
         theirs.st_dev == named.st_dev && theirs.st_ino == named.st_ino;
}

bool is_below(Process process, int ancestor) {
  while (process.pid != ancestor) {
    const std::optional<Process> parent = find_process(process.parent);
    if (!parent) return false;
    process = *parent;
  }
  return true;
}

bool is_selected(const Process& process, const Selection& selection) {
  const auto any = [](const auto& list, const auto& test) {
    return std::any_of(list.begin(), list.end(), test);
  };
  return selection.all ||
         any(selection.exes, [&](const std::string& exe) { return runs(process, exe); }) ||
         any(selection.names,
             [&](const std::string& name) { return process.comm == name.substr(0, comm_max); }) ||
         any(selection.trees, [&](int pid) { return is_below(process, pid); });
}

}  // namespace

std::vector<Seen> see_all() {
  std::vector<Seen> all;
  SocketFinder finder;
  for (const int pid : list_pids()) {
    const std::optional<Process> process = find_process(pid);
    if (!process) continue;
    const ControlSocket socket = finder.find(*process);
    if (socket.state == ControlSocket::found || socket.state == ControlSocket::denied) {
      all.push_back({*process, socket.state == ControlSocket::denied, false});
    } else if (socket.state == ControlSocket::absent && has_inherited(*process)) {
      all.push_back({*process, false, true});
    }
  }
  return all;
}

namespace {

// All that --exe, --name and --tree select, with Molt or without. --all stays what it is without
// Molt: nobody means every process of the machine. A thread of the kernel has no program, a process
// that has ended no memory.
std::vector<Process> find_any(const Selection& selection) {
  Selection named = selection;
  named.all = false;
  std::vector<Process> found;
  for (const int pid : list_pids()) {
    const std::optional<Process> process = find_process(pid);
    if (!process || pid == ::getpid() || process->state == 'Z' || process->state == 'X') continue;
    if (!is_selected(*process, named)) continue;
    char program[1];
    const std::string link = fmt::format("/proc/{}/exe", pid);
    if (::readlink(link.c_str(), program, sizeof program) < 0 && errno == ENOENT) continue;
    found.push_back(*process);
  }
  return found;
}

}  // namespace

std::vector<Process> choose_targets(const Selection& selection, bool attaches) {
  if (selection.empty()) {
    const std::vector<Seen> all = see_all();
    if (all.empty()) {
      fail(ErrorClass::usage, EINVAL,
           "no process given, and none with Molt is running here; start one, then name it with -p");
    }
    fail(ErrorClass::usage, EINVAL,
         "no process given; there {} {}; name one with -p PID, or several with --all, --name, "
         "--exe or --tree",
         all.size() == 1 ? "is" : "are", listing(all));
  }

  std::vector<Process> chosen;
  std::set<int> pids;
  const auto add = [&](const Process& process) {
    if (pids.insert(process.pid).second) chosen.push_back(process);
  };
  for (const int pid : selection.pids) {
    Process none;
    none.pid = pid;
    add(find_process(pid).value_or(none));
  }
  if (!selection.is_pids_only()) {
    for (const Seen& seen : see_all()) {
      // --all means all that this user may control; `molt ps` shows the others.
      if (!seen.denied && is_selected(seen.process, selection)) add(seen.process);
    }
    if (attaches) {
      for (const Process& process : find_any(selection)) add(process);
    }
  }
  if (chosen.empty()) {
    if (attaches && !selection.all) {
      fail(ErrorClass::missing, ESRCH, "no process is selected by what was given");
    }
    fail(ErrorClass::missing, ESRCH,
         "no process with Molt is selected by what was given; `molt ps` lists all there are");
  }
  std::sort(chosen.begin(), chosen.end(),
            [](const Process& a, const Process& b) { return a.pid < b.pid; });
  return chosen;
}

Connection& Session::connection(Deadline deadline) {
  if (process_.inner_pid == 0) {
    fail(ErrorClass::missing, ESRCH, "there is no process {}; `molt ps` lists those with Molt",
         process_.pid);
  }
  if (!connection_ && !options_.dry_run &&
      SocketFinder().find(process_).state == ControlSocket::absent && has_inherited(process_)) {
    attach_to(process_, options_);
  }
  // What a given-up request is still answered must not be taken for the next one's reply.
  if (!connection_ || connection_->is_awaiting()) {
    // Where the socket is, and whether it needs loans, goes by its user, whom a server that has just begun
    // (a worker of nginx) may have changed since.
    process_ = find_process(process_.pid).value_or(process_);
    connection_.emplace(process_, deadline);
    if (needs_loans(process_)) {
      lend(process_,
           [&] { return connection_->call(wire::method::lend, Json::object(), -1, deadline); });
      // A request that was given up is still answered.
      if (connection_->is_awaiting()) connection_.emplace(process_, deadline);
    }
  }
  return *connection_;
}

Json Session::call(std::string_view method, const Json& parameters) {
  const int wait = options_.timeout_s ? options_.timeout_ms() + default_grace_ms : answer_ms;
  const Deadline deadline = Deadline::after(std::chrono::milliseconds(wait));
  return connection(deadline).call(method, parameters, -1, deadline);
}

Json Session::call_waiting(std::string_view method, Json parameters, int default_ms, int fd,
                           int grace_ms) {
  const int asked_ms = options_.timeout_s ? std::max(options_.timeout_ms(), least_ms_) : -1;
  const int wait = options_.timeout_s ? asked_ms : default_ms;
  const Deadline deadline =
      wait < 0 ? Deadline::never() : Deadline::after(std::chrono::milliseconds(wait + grace_ms));
  parameters["timeout_ms"] = asked_ms;
  return connection(deadline).call(method, parameters, fd, deadline);
}

void Session::stream(std::string_view method, const Json& parameters,
                     const std::function<void(const Json&)>& take) {
  connection(Deadline::after(std::chrono::milliseconds(answer_ms)))
      .stream(method, parameters, take);
}

void Session::part_failed(const Failure& failure) {
  failures_.push_back(failure);
  tally_.failed(failure.exit_code());
}

void in_parallel(std::size_t count, const std::function<void(std::size_t)>& f) {
  std::atomic<std::size_t> next = 0;
  const auto work = [&] {
    for (std::size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) f(i);
  };
  if (count <= 1) return work();
  std::vector<std::jthread> threads(std::min(count, threads_max));
  for (std::jthread& thread : threads) thread = std::jthread(work);
}

namespace {

// "load: 120 of 1000 processes" on a terminal, while there is something to wait for.
class Progress {
 public:
  Progress(const Options& options, std::string_view verb, std::size_t all)
      : verb_(verb), all_(all) {
    constexpr std::size_t few = 8;
    shows_ = all > few && !options.quiet && !options.json && ::isatty(STDERR_FILENO) != 0;
  }
  void one_more() {
    if (!shows_) return;
    std::lock_guard lock(mutex_);
    fmt::print(stderr, "\r{}: {} of {} processes", verb_, ++done_, all_);
  }
  // The line is taken back: results come next.
  void end() {
    if (shows_) fmt::print(stderr, "\r\x1b[K");
  }

 private:
  const std::string verb_;
  const std::size_t all_;
  bool shows_ = false;
  std::mutex mutex_;
  std::size_t done_ = 0;
};

}  // namespace

int run_on_targets(const Options& options, std::string_view verb, const Task& task) {
  std::vector<Session> sessions;
  for (const Process& process : choose_targets(options.selection, task.attaches)) {
    sessions.emplace_back(process, options);
  }

  std::vector<std::variant<Json, Failure>> answers(sessions.size());
  Progress progress(options, verb, task.streams ? 0 : sessions.size());
  in_parallel(sessions.size(), [&](std::size_t i) {
    try {
      answers[i] = task.ask(sessions[i]);
    } catch (const Failure& failure) {
      answers[i] = failure;
    } catch (const Json::exception&) {
      answers[i] = bad_reply(sessions[i].process());
    }
    progress.one_more();
  });
  progress.end();

  const bool several = !options.selection.is_single();
  Report report(options, verb, several);
  Tally tally;
  for (std::size_t i = 0; i < sessions.size(); ++i) {
    const Session& session = sessions[i];
    const Process& process = session.process();
    for (const std::string& note : session.notes()) report.note(process, note);
    for (const Failure& failure : session.failures()) report.failure_line(&process, failure);

    try {
      if (const Json* reply = std::get_if<Json>(&answers[i])) {
        report.reply(process, *reply, options.json || !task.show ? "" : task.show(*reply));
        tally.add(session.tally());
        if (session.failures().empty()) tally.done();
        continue;
      }
    } catch (const Json::exception&) {  // in show()
      answers[i] = bad_reply(process);
    }
    const Failure& failure = std::get<Failure>(answers[i]);
    report.failure(&process, failure);
    tally.failed(failure.exit_code());
  }
  report.finish(task.streams);
  return tally.exit_code();
}

}  // namespace molt::cli
