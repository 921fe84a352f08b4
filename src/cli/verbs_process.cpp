// Verbs about processes as a whole.

#include "cli/print.hpp"
#include "cli/targets.hpp"
#include "cli/verbs.hpp"
#include "cli/witness.hpp"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <optional>
#include <utility>
#include <variant>

namespace molt::cli {
namespace {

// One process that does not answer must not hold up the list of the others.
constexpr double ps_answer_s = 2;
constexpr int gc_interval_max_s = 86'400;

struct Row {
  Process process;
  std::variant<Json, Failure> info;
  std::vector<std::string> cells;
  bool inherited = false;  // nothing is asked: that would start threads in it
};

// A folder may be left over from a process that had this pid before, or from an earlier program.
bool is_stale(const Row& row) {
  const Failure* failure = std::get_if<Failure>(&row.info);
  return failure && failure->kind == ErrorClass::missing;
}

std::string process_state(const Json& info) {
  if (const auto text = info.value("poisoned", std::string()); !text.empty()) {
    return "poisoned: " + text;
  }
  if (const auto text = info.value("operation", std::string()); !text.empty()) return text;
  return info.value("locked", false) ? "locked" : "ok";
}

std::string count_of(const Json& info, const char* key) {
  return std::to_string(info.value(key, std::uint64_t{0}));
}

std::vector<std::string> cells_of(const Process& process, const Json& info) {
  return {std::to_string(process.pid), info.value("name", process.comm), info.value("version", ""),
          count_of(info, "modules"),   count_of(info, "hooks"),          info.value("taint", ""),
          process_state(info)};
}

Row ask(const Process& process, double wait_s) {
  Row row{process, {}, {}};
  const Deadline deadline =
      Deadline::after(std::chrono::milliseconds(static_cast<int>(wait_s * 1000)));
  try {
    Connection connection(process, deadline);
    const Json info = connection.call(wire::method::get_info, Json::object(), -1, deadline);
    row.cells = cells_of(process, info);
    row.info = info;
  } catch (const Failure& failure) {
    row.info = failure;
  } catch (const Json::exception&) {
    row.info = bad_reply(process);
  }
  if (const Failure* failure = std::get_if<Failure>(&row.info)) {
    std::string why = failure->message;
    if (const std::string start = describe(process) + " "; why.starts_with(start)) {
      why.erase(0, start.size());
    }
    row.cells = {std::to_string(process.pid), process.comm, "", "", "", "", why};
  }
  return row;
}

bool is_dormant(const Process& process) {
  return SocketFinder().find(process).state == ControlSocket::absent && has_inherited(process);
}

Row dormant(const Process& process) {
  Row row{process, {}, {}};
  row.info = Json{{"inherited", true}};
  row.cells = {std::to_string(process.pid),
               process.comm,
               "",
               "",
               "",
               "",
               fmt::format("forked; any verb with -p {} makes it answer", process.pid)};
  return row;
}

Json object_of(const Row& row) {
  Json object = {{"pid", row.process.pid}, {"comm", row.process.comm}};
  if (const Failure* failure = std::get_if<Failure>(&row.info)) {
    object["error"] = failure->json();
    return object;
  }
  for (const auto& [key, value] : std::get<Json>(row.info).items()) {
    // The process's own pid is that of its namespace.
    if (key != "schema" && key != "pid") object[key] = value;
  }
  return object;
}

// Without a selection also those that this user may not talk to, and those that do not answer yet.
std::vector<Row> choose_rows(const Selection& selection) {
  std::vector<Row> rows;
  if (!selection.empty()) {
    for (const Process& process : choose_targets(selection)) rows.push_back({process, {}, {}});
    return rows;
  }
  for (const Seen& seen : see_all()) {
    rows.push_back({seen.process, {}, {}});
    rows.back().inherited = seen.inherited;
  }
  return rows;
}

}  // namespace

Runner declare_ps(CLI::App&) {
  return [](const Options& options) {
    const double wait_s = std::min(ps_answer_s, options.timeout_s.value_or(ps_answer_s));
    std::vector<Row> rows = choose_rows(options.selection);
    in_parallel(rows.size(), [&](std::size_t i) {
      if (rows[i].inherited || (!options.selection.empty() && is_dormant(rows[i].process))) {
        rows[i] = dormant(rows[i].process);
      } else {
        rows[i] = ask(rows[i].process, wait_s);
      }
    });
    std::erase_if(rows, is_stale);

    Table table({{"PID", Table::right},
                 {"NAME", Table::left},
                 {"VERSION", Table::left},
                 {"MODULES", Table::right},
                 {"HOOKS", Table::right},
                 {"TAINT", Table::left},
                 {"STATE", Table::left}});
    Json objects = Json::array();
    for (const Row& row : rows) {
      table.add(row.cells);
      objects.push_back(object_of(row));
    }
    print_result(options, "ps", {{"processes", std::move(objects)}}, table.text());
    return int{rows.empty() && !options.selection.empty() ? exit_missing : exit_done};
  };
}

Runner declare_gc(CLI::App& verb) {
  auto ignore_pointers = std::make_shared<bool>(false);
  auto every_s = std::make_shared<int>(-1);
  verb.add_option("--every", *every_s,
                  "Let the process do it by itself every so many seconds; 0: no more")
      ->option_text("SECONDS")
      ->check(CLI::Range(0, gc_interval_max_s));
  verb.add_flag("--ignore-pointers", *ignore_pointers,
                "Free memory although the process still has addresses in it");
  return [ignore_pointers, every_s](const Options& options) {
    const auto ask_gc = [ignore_pointers, every_s, &options](Session& session) {
      if (*every_s >= 0 && !session.options().dry_run) {
        session.call(wire::method::set,
                     {{"path", "host/gc_interval_s"}, {"value", std::to_string(*every_s)}});
      }
      Json parameters = Json::object();
      if (*ignore_pointers) parameters["ignore_pointers"] = true;
      if (session.options().dry_run) parameters["dry_run"] = true;
      Json reply = session.call(wire::method::gc, parameters);
      if (options.dry_run) return reply;
      // What only a stale word on a stack keeps.
      int testimonies = 0;
      for (const Json& kept : reply.at("kept")) {
        testimonies += testify(session, kept.at("name").get<std::string>());
      }
      if (testimonies == 0) return reply;
      Json again = session.call(wire::method::gc, parameters);
      for (Json& name : again.at("freed")) reply["freed"].push_back(std::move(name));
      reply["kept"] = std::move(again["kept"]);
      return reply;
    };
    const auto show = [&options](const Json& reply) {
      std::string text;
      if (options.quiet) return text;
      for (const Json& name : reply.at("freed")) {
        text += fmt::format("{}: {}freed\n", printable(name.get<std::string>()),
                            options.dry_run ? "would be " : "");
      }
      for (const Json& kept : reply.at("kept")) {
        text += demangled(printable(fmt::format("{}: kept: {}", kept.at("name").get<std::string>(),
                                                kept.value("reason", "")))) +
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
  verb.add_option(
      "NAME", *name,
      "A module or patch; without it, wait until no operation or transition is under way");
  verb.add_option("--for", *event, "What to wait for")
      ->option_text("live|gone|freed|patched|unpatched")
      ->check(CLI::IsMember({"live", "gone", "freed", "patched", "unpatched"}));
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
                             // What holds memory may be a stale word on a thread's stack.
                             std::optional<Witness> witness;
                             if (*event == "freed") witness.emplace(session, *name);
                             return session.call_waiting(wire::method::wait, parameters, no_limit);
                           },
                           nullptr});
  };
}

}  // namespace molt::cli
