// Verbs about processes as a whole.

#include "cli/print.hpp"
#include "cli/targets.hpp"
#include "cli/verbs.hpp"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>
#include <variant>

namespace molt::cli {
namespace {

// One process that does not answer must not hold up the list of the others.
constexpr double ps_answer_s = 2;

struct Row {
  Process process;
  std::variant<Json, Failure> info;
};

// A folder may be left over from a process that had this pid before, or from an earlier program.
bool is_stale(const Row& row) {
  const Failure* failure = std::get_if<Failure>(&row.info);
  return failure && failure->kind == ErrorClass::missing;
}

Row ask(const Seen& seen, const Options& options) {
  Row row{seen.process, {}};
  try {
    const auto wait = std::chrono::milliseconds(options.timeout_ms());
    Connection connection(seen.process, Deadline::after(wait));
    row.info = connection.call(wire::method::get_info, Json::object(), -1, Deadline::after(wait));
  } catch (const Failure& failure) {
    row.info = failure;
  }
  return row;
}

std::string state_of(const Json& info) {
  if (const auto text = info.value("poisoned", std::string()); !text.empty()) {
    return "poisoned: " + text;
  }
  if (const auto text = info.value("operation", std::string()); !text.empty()) return text;
  return info.value("locked", false) ? "locked" : "ok";
}

std::string count_of(const Json& info, const char* key) {
  return std::to_string(info.value(key, std::uint64_t{0}));
}

}  // namespace

Runner declare_ps(CLI::App&) {
  return [](const Options& given) {
    Options options = given;
    options.timeout_s = std::min(ps_answer_s, given.timeout_s.value_or(ps_answer_s));

    std::vector<Seen> seen = see_all();
    if (!given.selection.empty()) {
      std::vector<int> chosen;
      for (const Process& process : choose_targets(given.selection)) chosen.push_back(process.pid);
      std::erase_if(seen, [&](const Seen& one) {
        return std::find(chosen.begin(), chosen.end(), one.process.pid) == chosen.end();
      });
    }

    std::vector<Row> rows(seen.size());
    in_parallel(seen.size(), [&](std::size_t i) { rows[i] = ask(seen[i], options); });
    std::erase_if(rows, is_stale);

    Table table({{"PID", Table::right},
                 {"NAME", Table::left},
                 {"VERSION", Table::left},
                 {"MODULES", Table::right},
                 {"HOOKS", Table::right},
                 {"TAINT", Table::left},
                 {"STATE", Table::left}});
    Json processes = Json::array();
    for (const Row& row : rows) {
      const std::string pid = std::to_string(row.process.pid);
      Json object = {{"pid", row.process.pid}, {"comm", row.process.comm}};
      if (const Failure* failure = std::get_if<Failure>(&row.info)) {
        table.add({pid, row.process.comm, "", "", "", "", failure->message});
        object["error"] = failure->json();
      } else {
        const Json& info = std::get<Json>(row.info);
        table.add({pid, info.value("name", row.process.comm), info.value("version", ""),
                   count_of(info, "modules"), count_of(info, "hooks"), info.value("taint", ""),
                   state_of(info)});
        // The process's own pid is that of its namespace.
        for (const auto& [key, value] : info.items()) {
          if (key != "schema" && key != "pid") object[key] = value;
        }
      }
      processes.push_back(std::move(object));
    }
    const bool found = !processes.empty();
    print_result(options, "ps", {{"processes", std::move(processes)}}, table.text());
    return int{found || given.selection.empty() ? exit_done : exit_missing};
  };
}

Runner declare_gc(CLI::App&) {
  return [](const Options& options) {
    const auto ask_gc = [](Session& session) {
      Json parameters = Json::object();
      if (session.options().dry_run) parameters["dry_run"] = true;
      return session.call(wire::method::gc, parameters);
    };
    const auto show = [&options](const Json& reply) {
      std::string text;
      if (options.quiet) return text;
      for (const Json& name : reply.at("freed")) {
        text += fmt::format("{}: {}freed\n", printable(name.get<std::string>()),
                            options.dry_run ? "would be " : "");
      }
      for (const Json& kept : reply.at("kept")) {
        text += printable(fmt::format("{}: kept: {}", kept.at("name").get<std::string>(),
                                      kept.value("reason", ""))) +
                "\n";
      }
      return text;
    };
    return run_on_targets(options, "gc", {ask_gc, show});
  };
}

Runner declare_wait(CLI::App& verb) {
  auto name = std::make_shared<std::string>();
  auto event = std::make_shared<std::string>();
  verb.add_option("NAME", *name, "A module; without it, wait until no operation is under way");
  verb.add_option("--for", *event, "What to wait for")
      ->option_text("live|gone|freed")
      ->check(CLI::IsMember({"live", "gone", "freed"}));
  return [name, event](const Options& options) {
    if (name->empty() && !event->empty()) {
      fail(ErrorClass::usage, EINVAL, "--for needs the name of a module");
    }
    Json parameters = Json::object();
    if (!name->empty()) parameters["name"] = *name;
    if (!event->empty()) parameters["for"] = *event;
    constexpr int no_limit = -1;
    return run_on_targets(options, "wait",
                          {[=](Session& session) {
                             return session.call_waiting(wire::method::wait, parameters, no_limit);
                           },
                           nullptr});
  };
}

}  // namespace molt::cli
