// Who stands between a module and its end, or a patch and the end of its transition.

#include "cli/print.hpp"
#include "cli/targets.hpp"
#include "cli/verbs.hpp"
#include "cli/witness.hpp"

#include <cstdlib>
#include <memory>

namespace molt::cli {
namespace {

bool is_on_stack(const Json& holder) {
  return std::strtoull(holder.value("stack_address", "0").c_str(), nullptr, 16) != 0;
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
    if (holder.contains("address") && is_on_stack(holder)) {
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
      Json reply = session.call(wire::method::blocking, request);
      unwind_threads(session.process(), reply["holders"], nullptr);
      return reply;
    };
    const auto show = [&options](const Json& reply) { return show_blocking(reply, options); };
    return run_on_targets(options, "blocking", {ask, show});
  };
}

}  // namespace molt::cli
