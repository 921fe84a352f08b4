// What the memory of a process says about its modules.

#include "cli/print.hpp"
#include "cli/targets.hpp"
#include "cli/verbs.hpp"

#include <memory>

namespace molt::cli {
namespace {

// What the process searches for if the user set no --timeout, see docs/protocol.md.
constexpr int audit_ms = 30'000;

std::string show_audit(const Json& reply, const Options& options) {
  std::string text;
  for (const Json& p : reply.at("pointers")) {
    std::string line = p.at("where").get<std::string>();
    if (p.value("place", "") != "signal" && p.value("place", "") != "timer") {
      line += " at " + p.value("address", "?");
    }
    line += fmt::format(" -> {} ({})", p.value("target", "?"), p.value("looks", "?"));
    if (const auto owner = p.value("owner", std::string()); !owner.empty()) {
      line += ", known to " + owner;
    }
    if (!p.value("bars", true)) line += ", does not bar unloading";
    text += demangled(printable(line)) + "\n";
  }
  if (const auto more = reply.value("more", std::uint64_t{0}); more != 0) {
    text += fmt::format("and {} more\n", more);
  }
  if (!reply.value("stable", true)) {
    text += "pointers moved faster than they could be followed; there may be others\n";
  }
  if (options.verbose) {
    text += fmt::format("{} KiB searched in {} rounds ({}), {} us; {} words do not count\n",
                        reply.value("bytes", std::uint64_t{0}) / 1024, reply.value("rounds", 0),
                        reply.value("method", "?"), reply.value("us", std::int64_t{0}),
                        reply.value("dismissed", std::uint64_t{0}));
  }
  return text;
}

}  // namespace

Runner declare_audit(CLI::App& verb) {
  auto name = std::make_shared<std::string>();
  verb.add_option("NAME", *name, "The module")->required();
  return [name](const Options& options) {
    const auto ask = [name](Session& session) {
      return session.call_waiting(wire::method::audit, {{"name", *name}}, audit_ms);
    };
    const auto show = [&options](const Json& reply) { return show_audit(reply, options); };
    return run_on_targets(options, "audit", {ask, show});
  };
}

}  // namespace molt::cli
