// The event log.

#include "cli/print.hpp"
#include "cli/targets.hpp"
#include "cli/verbs.hpp"

#include <ctime>

#include <memory>
#include <mutex>

namespace molt::cli {
namespace {

std::string local_time(std::int64_t time_ms) {
  const std::time_t seconds = time_ms / 1000;
  std::tm parts{};
  ::localtime_r(&seconds, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%F %T", &parts);
  return fmt::format("{}.{:03}", text, time_ms % 1000);
}

std::string show_events(const Json& reply, bool verbose) {
  std::string text;
  if (const auto lost = reply.value("lost", std::uint64_t{0}); lost > 0) {
    text +=
        fmt::format("({} events are lost: the log is a ring, and these were overwritten)\n", lost);
  }
  for (const Json& event : reply.at("events")) {
    text += fmt::format("[{}] {}", local_time(event.at("time_ms").get<std::int64_t>()),
                        demangled(printable(event.at("text").get<std::string>())));
    if (const int pid = event.value("pid", 0); verbose && pid != 0) {
      text += fmt::format(" (asked by pid {}, uid {})", pid, event.value("uid", 0));
    }
    text += "\n";
  }
  return text;
}

// Follows for ever: prints as events come, each line by itself where there are several processes.
Json follow(Session& session, Json parameters) {
  static std::mutex printing;
  const Options& options = session.options();
  const Process& process = session.process();
  parameters["more"] = true;
  session.stream(wire::method::events, parameters, [&](const Json& reply) {
    if (reply.at("events").empty() && reply.value("lost", 0) == 0) return;
    std::string text;
    if (options.json) {
      Json object = {{"schema", wire::schema}, {"verb", "events"}, {"pid", process.pid}};
      object.update(reply);
      text = json_line(object);
    } else {
      text = show_events(reply, options.verbose);
      if (!options.selection.is_single()) {
        std::string prefixed;
        for (std::size_t at = 0, end; at < text.size(); at = end + 1) {
          end = text.find('\n', at);
          prefixed += fmt::format("{}: {}\n", process.pid, text.substr(at, end - at));
        }
        text = prefixed;
      }
    }
    const std::lock_guard lock(printing);
    print_now(text);
    flush_output();
  });
  return {};
}

}  // namespace

Runner declare_events(CLI::App& verb) {
  struct Words {
    bool follow = false;
    std::uint64_t since = 0;
  };
  auto words = std::make_shared<Words>();
  verb.add_flag("-f,--follow", words->follow,
                "Go on with events as they happen, until interrupted");
  verb.add_option("--since", words->since, "Begin with this sequence number")->option_text("N");
  return [words](const Options& options) {
    Json parameters = Json::object();
    if (words->since > 0) parameters["since"] = words->since;
    if (words->follow) {
      return run_on_targets(
          options, "events",
          {[=](Session& session) { return follow(session, parameters); }, nullptr, true});
    }
    return run_on_targets(
        options, "events",
        {[=](Session& session) { return session.call(wire::method::events, parameters); },
         [&options](const Json& reply) { return show_events(reply, options.verbose); }});
  };
}

}  // namespace molt::cli
