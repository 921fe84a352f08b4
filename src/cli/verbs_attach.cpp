// Verbs that put the runtime into processes.

#include "attach/attach.hpp"
#include "attach/obstacles.hpp"
#include "attach/prospects.hpp"
#include "cli/agent.hpp"
#include "cli/print.hpp"
#include "cli/targets.hpp"
#include "cli/verbs.hpp"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <optional>
#include <sstream>
#include <system_error>
#include <thread>

namespace molt::cli {

Runner declare_attach(CLI::App&) {
  return [](const Options& options) {
    refuse_dry_run(options, "attach");
    const auto ask = [](Session& session) {
      const attach::Report report = attach_to(session.process(), session.options());
      return Json{{"found", to_text(report.found)},
                  {"stopped_us", report.stopped_us},
                  {"total_us", report.total_us},
                  {"memfd", report.by_memfd}};
    };
    const auto show = [&options](const Json& reply) {
      if (!options.verbose) return std::string();
      return fmt::format("attached ({}); one thread stopped for {:.0f} us, {:.1f} ms in all\n",
                         reply.at("found").get<std::string>(), reply.at("stopped_us").get<double>(),
                         reply.at("total_us").get<double>() / 1000);
    };
    return run_on_targets(options, "attach", {ask, show, false, true});
  };
}

Runner declare_detach(CLI::App&) {
  return [](const Options& options) {
    const auto ask = [](Session& session) {
      Json parameters = Json::object();
      if (session.options().dry_run) parameters["dry_run"] = true;
      session.call(wire::method::detach, parameters);
      session.hang_up();
      const Deadline deadline = Deadline::after(std::chrono::milliseconds(
          session.options().timeout_s ? session.options().timeout_ms() : answer_ms));
      while (!session.options().dry_run && has_own_threads(session.process())) {
        if (deadline.remaining_ms() == 0) {
          fail(ErrorClass::stalled, ETIMEDOUT,
               "{}: its threads of Molt have not ended within {}; they will",
               describe(session.process()), deadline.text());
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      return Json::object();
    };
    return run_on_targets(options, "detach", {ask, {}});
  };
}

namespace {

// Why a process that has Molt can be changed no more, in its own words; or why it cannot say.
std::optional<attach::Obstacle> refusal_of(const Process& process) {
  const Deadline deadline = Deadline::after(std::chrono::milliseconds(answer_ms));
  try {
    Connection connection(process, deadline);
    const Json info = connection.call(wire::method::get_info, Json::object(), -1, deadline);
    if (const auto why = info.value("poisoned", std::string()); !why.empty()) {
      return attach::Obstacle{ENOTRECOVERABLE,
                              "Molt stopped operating: " + why + "; restart it when you can"};
    }
    if (info.value("locked", false)) {
      return attach::Obstacle{EPERM, "loading and unloading are locked until it restarts"};
    }
    return std::nullopt;
  } catch (const Failure& failure) {
    return attach::Obstacle{failure.code, failure.message};
  }
}

}  // namespace

Runner declare_doctor(CLI::App& verb) {
  auto pids = std::make_shared<std::vector<int>>();
  verb.add_option("PID", *pids, "Processes, as with --pid");
  return [pids](const Options& options) {
    Selection asked = options.selection;
    asked.pids.insert(asked.pids.end(), pids->begin(), pids->end());
    if (asked.empty()) fail(ErrorClass::usage, EINVAL, "which process? `molt doctor PID`");
    Json objects = Json::array();
    std::string text;
    Tally tally;
    for (const Process& process : choose_targets(asked, true)) {
      const int pid = process.pid;
      const bool exists = process.inner_pid != 0;
      const ControlSocket socket = exists ? SocketFinder().find(process) : ControlSocket();
      const bool there = socket.state == ControlSocket::found && !is_left_behind(socket);
      Json obstacles = Json::array();
      const std::string name = exists ? describe(process) : fmt::format("process {}", pid);
      if (there) text += fmt::format("{}: Molt is there\n", name);
      int code = 0;
      std::vector<attach::Obstacle> found;
      const char* which = "cannot be attached to";
      if (!there) {
        found = attach::obstacles(pid, attach::Depth::with_filters);
      } else if (auto rests = attach::standstill(pid)) {
        which = "does not answer";
        found.push_back(*rests);
      } else if (auto refusal = refusal_of(process)) {
        which = "cannot be changed";
        found.push_back(*refusal);
      }
      for (const attach::Obstacle& obstacle : found) {
        obstacles.push_back({{"errno", errno_name(obstacle.code)}, {"text", obstacle.text}});
        text += printable(fmt::format("{}: {}: {}", name, which, obstacle.text)) + "\n";
        if (code == 0) code = obstacle.code;
      }
      if (!there && code == 0) text += fmt::format("{}: can be attached to\n", name);
      Json prospects = Json::array();
      std::vector<attach::Prospect> verbs;
      if (code == 0)
        verbs = attach::prospects(pid, there).value_or(std::vector<attach::Prospect>());
      for (const attach::Prospect& prospect : verbs) {
        prospects.push_back(
            {{"what", prospect.what}, {"possible", prospect.possible}, {"text", prospect.text}});
        text +=
            printable(fmt::format("  {}: {}{}{}", prospect.what, prospect.possible ? "yes" : "no",
                                  prospect.text.empty() ? "" : ", ", prospect.text)) +
            "\n";
      }
      code == 0 ? tally.done() : tally.failed(int{exit_refused});
      objects.push_back({{"pid", pid},
                         {"molt", there},
                         {"attachable", code == 0},
                         {"obstacles", std::move(obstacles)},
                         {"prospects", std::move(prospects)}});
    }
    print_result(options, "doctor", {{"processes", std::move(objects)}}, text);
    return tally.exit_code();
  };
}

namespace {

// As execvp() looks for it; as it was given where it is nowhere.
std::string find_command(const std::string& command) {
  if (command.find('/') != std::string::npos) return command;
  const char* folders = std::getenv("PATH");
  std::istringstream in(folders != nullptr ? folders : "/bin:/usr/bin");
  for (std::string folder; std::getline(in, folder, ':');) {
    std::string path = (folder.empty() ? "." : folder) + "/" + command;
    if (::access(path.c_str(), X_OK) == 0) return path;
  }
  return command;
}

}  // namespace

Runner declare_run(CLI::App& verb) {
  auto words = std::make_shared<std::vector<std::string>>();
  auto children = std::make_shared<bool>(false);
  verb.add_flag("--children", *children, "Also in programs that it starts, and those in turn");
  verb.add_option("COMMAND", *words, "The program and its arguments, behind --")->required();
  return [words, children](const Options& options) -> int {
    refuse_dry_run(options, "run");
    const std::string runtime = runtime_path();
    if (runtime.find_first_of(": ") != std::string::npos) {
      fail(ErrorClass::failed, EINVAL, "the loader cannot preload '{}': it has a colon or a blank",
           runtime);
    }
    if (const auto obstacle = attach::obstacle_to_preload(find_command(words->front()))) {
      fail(ErrorClass::refused, obstacle->code, "{} cannot be run with Molt: {}", words->front(),
           obstacle->text);
    }
    const char* others = std::getenv("LD_PRELOAD");
    const std::string preload = others && *others ? fmt::format("{}:{}", runtime, others) : runtime;
    ::setenv("LD_PRELOAD", preload.c_str(), 1);
    ::setenv("MOLT_AGENT", runtime.c_str(), 1);
    if (*children) ::setenv("MOLT_AGENT_CHILDREN", "1", 1);
    std::vector<char*> arguments;
    for (std::string& word : *words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    ::execvp(arguments[0], arguments.data());
    const int code = errno;
    fail(class_of_errno(code), code, "cannot run {}: {}", arguments[0],
         std::generic_category().message(code));
  };
}

}  // namespace molt::cli
