// Verbs for hooks and the order of the callbacks on them.

#include "cli/agent.hpp"
#include "cli/print.hpp"
#include "cli/targets.hpp"
#include "cli/verbs.hpp"

#include <cerrno>
#include <memory>
#include <sstream>

namespace molt::cli {
namespace {

std::string callbacks_of(const Json& hook) {
  Json modules = Json::array();
  for (const Json& callback : hook.at("callbacks")) modules.push_back(callback.at("module"));
  return joined(modules);
}

std::string show_hooks(const Json& reply) {
  Table table({{"Hook", Table::left},
               {"Rule", Table::left},
               {"Callbacks", Table::left},
               {"Signature", Table::left}});
  for (const Json& hook : reply.at("hooks")) {
    table.add({hook.at("name").get<std::string>(), hook.value("rule", ""), callbacks_of(hook),
               hook.value("signature", "")});
  }
  return table.text();
}

std::string show_hooks_at_length(const Json& reply) {
  std::string text;
  for (const Json& hook : reply.at("hooks")) {
    if (!text.empty()) text += "\n";
    text += field_line("hook", hook.at("name").get<std::string>());
    for (const char* key : {"description", "signature", "rule", "on_exception"}) {
      if (const auto value = hook.value(key, std::string()); !value.empty()) {
        text += field_line(key, value);
      }
    }
    text += field_line("callbacks", callbacks_of(hook));
    if (const Json order = hook.value("order", Json()); order.is_array() && !order.empty()) {
      text += field_line("order", joined(order));
    }
  }
  return text;
}

}  // namespace

Runner declare_hook_list(CLI::App&) {
  return [](const Options& options) {
    return run_on_targets(options, "hook list",
                          {[](Session& session) { return session.call(wire::method::hook_list); },
                           options.verbose ? show_hooks_at_length : show_hooks});
  };
}

Runner declare_hook_order(CLI::App& verb) {
  struct Words {
    std::vector<std::string> positional;
    bool all_hooks = false;
    bool reset = false;
  };
  auto words = std::make_shared<Words>();
  verb.add_option("HOOK MODULES", words->positional,
                  "The hook, then the modules in the order in which they shall be called");
  verb.add_flag("--all-hooks", words->all_hooks, "All hooks, instead of HOOK");
  verb.add_flag("--reset", words->reset, "Back to load order, instead of MODULE,MODULE...");
  return [words](const Options& options) {
    refuse_dry_run(options, "hook order");
    const std::size_t wanted = (words->all_hooks ? 0 : 1) + (words->reset ? 0 : 1);
    if (words->positional.size() != wanted) {
      fail(ErrorClass::usage, EINVAL,
           "hook order takes HOOK or --all-hooks, and then MODULE,MODULE... or --reset");
    }
    Json parameters = Json::object();
    if (!words->all_hooks) parameters["hook"] = words->positional.front();
    if (words->reset) {
      parameters["modules"] = nullptr;
    } else {
      parameters["modules"] = Json::array();
      std::istringstream names(words->positional.back());
      for (std::string name; std::getline(names, name, ',');) {
        if (!name.empty()) parameters["modules"].push_back(name);
      }
    }
    return run_on_targets(options, "hook order",
                          {[parameters](Session& session) {
                             attach_if_absent(session);
                             return session.call(wire::method::hook_order, parameters);
                           },
                           nullptr, false, true});
  };
}

}  // namespace molt::cli
