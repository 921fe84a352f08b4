// Unmodified programs: attach.py does it, since it starts Debian's servers and a thousand processes of
// its own; here its figures become part of the table. Each comes as a line of JSON.

#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "benches.hpp"

namespace bench {
namespace {

Goal goal_of(const nlohmann::json& goal) {
  const auto limit = [&](const char* kind) { return goal.at(kind).get<double>(); };
  if (goal.contains("at_most")) return Goal::value_at_most(limit("at_most"), goal.at("unit"));
  if (goal.contains("ratio_at_least")) return Goal::ratio_at_least(limit("ratio_at_least"));
  if (goal.contains("zero")) return Goal::value_is_zero();
  return Goal::info();
}

void add(Report& report, const std::string& line) {
  const auto told = nlohmann::json::parse(line);
  Record record;
  record.name = told.at("name");
  record.value = told.at("value");
  record.unit = told.value("unit", "");
  record.rival = told.value("rival", "");
  record.rival_value = told.value("rival_value", 0.0);
  record.ratio = told.value("ratio", 0.0);
  record.goal = goal_of(told.at("goal"));
  report.add(record);
}

Bench part(const char* name, const char* what) {
  const auto run = [name](const Options& options, Report& report) {
    const std::string command = std::string(options.quick ? "MOLT_QUICK=1 " : "") +
                                "PYTHONDONTWRITEBYTECODE=1 exec '" MOLT_BENCH_ATTACH
                                "' --records " +
                                (name + sizeof "attach." - 1);
    FILE* const out = popen(command.c_str(), "re");
    if (out == nullptr) throw std::runtime_error("cannot run " MOLT_BENCH_ATTACH);
    char* line = nullptr;
    std::size_t room = 0;
    std::string last;
    while (getline(&line, &room, out) > 0) {
      last = line;
      if (last.starts_with('{')) add(report, last);
    }
    std::free(line);
    const int status = pclose(out);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) throw std::runtime_error(last);
  };
  return {name, what, run};
}

}  // namespace

std::vector<Bench> program_benches() {
  return {part("attach.stop", "how long the first attach stops one thread"),
          part("attach.attaches", "10 000 attaches in a row to busy programs"),
          part("attach.kills", "1000 kills of the attaching program"),
          part("attach.idle", "redis and nginx with an idle agent, beside without"),
          part("attach.processes", "one patch to 1000 processes")};
}

}  // namespace bench
