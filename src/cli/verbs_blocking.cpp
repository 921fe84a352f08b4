// Who stands between a module and its end, or a patch and the end of its transition.

#include "cli/print.hpp"
#include "cli/targets.hpp"
#include "cli/verbs.hpp"
#include "unwind/walk.hpp"

#include <cstdlib>
#include <memory>
#include <optional>

namespace molt::cli {
namespace {

std::uint64_t number_of(const Json& holder, const char* key) {
  return std::strtoull(holder.value(key, "0").c_str(), nullptr, 16);
}

// What the process could only suspect from a word on a stack, its unwind tables may decide.
void unwind_threads(const Process& process, Json& holders) {
  // Threads have other numbers there than here.
  if (process.inner_pid != process.pid) return;
  std::optional<Result<unwind::Process>> objects;
  for (Json& holder : holders) {
    if (!holder.contains("tid") || !holder.contains("address") || holder.value("certain", false)) {
      continue;
    }
    const std::uint64_t at = number_of(holder, "stack_address");
    if (at == 0) continue;
    if (!objects) objects.emplace(unwind::Process::open(process.pid));
    if (!*objects) return;
    const auto walk = (*objects)->walk(holder.at("tid").get<int>());
    if (!walk) continue;  // it has run since: the next look tells
    const unwind::Word word = walk->judge(at);
    holder["word"] = unwind::to_text(word);
    if (word == unwind::Word::live) holder["certain"] = true;
  }
}

std::string show_blocking(const Json& reply, const Options& options) {
  std::string text;
  for (const Json& holder : reply.at("holders")) {
    std::string line = holder.at("what").get<std::string>();
    if (holder.contains("tid")) {
      line += fmt::format(" {} ({})", holder.at("tid").get<int>(), holder.value("thread", ""));
    }
    line += " " + holder.value("where", "");
    if (const auto ms = holder.value("asleep_ms", std::int64_t{0}); ms > 0) {
      line += fmt::format(", asleep for {}.{:03} s", ms / 1000, ms % 1000);
    }
    if (const auto call = holder.value("syscall", std::string()); !call.empty()) {
      line += " in " + call;
    }
    if (holder.contains("address") && number_of(holder, "stack_address") != 0) {
      line += fmt::format(", {} bytes above its stack pointer",
                          holder.value("depth", std::uint64_t{0}));
    }
    const std::string word = holder.value("word", "");
    if (word == "stale") {
      line += ": a stale word, no frame returns there";
    } else if (word == "live") {
      line += ": a live frame";
    } else if (holder.contains("address") && !holder.value("certain", false)) {
      line += ": not certain, the word may be stale";
    }
    text += demangled(printable(line)) + "\n";
  }
  if (text.empty() && options.verbose) text = "nobody\n";
  return text;
}

}  // namespace

Runner declare_blocking(CLI::App& verb) {
  auto name = std::make_shared<std::string>();
  verb.add_option("NAME", *name,
                  "The module, loaded or left in memory; default: the patch in transition");
  return [name](const Options& options) {
    const auto ask = [name](Session& session) {
      Json request = Json::object();
      if (!name->empty()) request["name"] = *name;
      Json reply = session.call(wire::method::blocking, std::move(request));
      unwind_threads(session.process(), reply["holders"]);
      return reply;
    };
    const auto show = [&options](const Json& reply) { return show_blocking(reply, options); };
    return run_on_targets(options, "blocking", {ask, show});
  };
}

}  // namespace molt::cli
