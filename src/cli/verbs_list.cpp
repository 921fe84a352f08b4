// Verbs that show which modules a process has, and what one of them is.

#include "cli/print.hpp"
#include "cli/targets.hpp"
#include "cli/verbs.hpp"

#include <cerrno>
#include <memory>

namespace molt::cli {
namespace {

std::string used_by(const Json& module) {
  const Json& holders = module.at("holders");
  if (!module.value("permanent", false)) return joined(holders);
  return holders.empty() ? "[permanent]" : joined(holders) + ",[permanent]";
}

std::string module_state(const Json& module) {
  const auto state = module.at("state").get<std::string>();
  return state == "live" && !module.value("enabled", true) ? "disabled" : state;
}

std::string show_table(const Json& reply) {
  Table live({{"Module", Table::left},
              {"Size", Table::right},
              {"Refcnt", Table::right},
              {"Used by", Table::left},
              {"State", Table::left},
              {"Taint", Table::left}});
  for (const Json& module : reply.at("modules")) {
    live.add({module.at("name").get<std::string>(),
              std::to_string(module.at("size").get<std::uint64_t>()),
              std::to_string(module.at("refcount").get<std::int64_t>()), used_by(module),
              module_state(module), module.value("taint", "")});
  }
  // Memory that unloaded modules still take, and what keeps it.
  Table resident({{"Unloaded", Table::left},
                  {"Size", Table::right},
                  {"State", Table::left},
                  {"Why", Table::left}});
  for (const Json& module : reply.value("resident", Json::array())) {
    resident.add(
        {fmt::format("{} {}", module.at("name").get<std::string>(), module.value("version", "")),
         std::to_string(module.at("size").get<std::uint64_t>()),
         module.at("state").get<std::string>(), demangled(module.value("reason", ""))});
  }
  return live.text() + (resident.empty() ? "" : "\n" + resident.text());
}

std::string show_lines(const Json& reply) {
  std::string text;
  for (const Json& module : reply.at("modules")) {
    text += printable(module.at("line").get<std::string>()) + "\n";
  }
  return text;
}

}  // namespace

Runner declare_list(CLI::App& verb) {
  auto as_lines = std::make_shared<bool>(false);
  verb.add_flag("--proc", *as_lines, "Print the lines of the kernel's /proc/modules");
  return [as_lines](const Options& options) {
    return run_on_targets(options, "list",
                          {[](Session& session) { return session.call(wire::method::list); },
                           *as_lines ? show_lines : show_table});
  };
}

namespace {

// Anything with a slash or the ending of a shared object, as for modinfo.
bool names_a_file(const std::string& name) {
  return name.find('/') != std::string::npos || name.ends_with(".so");
}

std::string parameter_line(const Json& parameter) {
  return field_line(
      "parm", fmt::format("{}:{} ({}) = {}{}", parameter.at("name").get<std::string>(),
                          parameter.value("description", ""),
                          parameter.at("type").get<std::string>(), parameter.value("value", ""),
                          parameter.value("writable", false) ? " [writable]" : ""));
}

std::string order_text(const Json& order) {
  // A word or a number, as enum molt_order has both.
  if (order.is_string()) return order.get<std::string>();
  if (!order.is_number()) return "normal";
  const int value = order.get<int>();
  return value < 0 ? "first" : value > 0 ? "last" : "normal";
}

std::string show_module(const Json& reply) {
  std::string text;
  for (const char* key :
       {"name", "version", "description", "license", "srcversion", "path", "store"}) {
    if (reply.contains(key) && !reply[key].empty()) text += field_line(key, value_text(reply[key]));
  }
  text += field_line("state", module_state(reply));
  text += field_line("size", value_text(reply.at("size")));
  text += field_line("refcnt", value_text(reply.at("refcount")));
  text += field_line("used by", used_by(reply));
  if (const auto taint = reply.value("taint", std::string()); !taint.empty()) {
    text += field_line("taint", taint);
  }
  for (const Json& parameter : reply.value("parameters", Json::array())) {
    text += parameter_line(parameter);
  }
  for (const Json& callback : reply.value("callbacks", Json::array())) {
    text += field_line("hook", fmt::format("{} ({})", callback.at("hook").get<std::string>(),
                                           order_text(callback.value("order", Json(0)))));
  }
  for (const Json& symbol : reply.value("exports", Json::array())) {
    text += field_line("export", value_text(symbol));
  }
  for (const Json& symbol : reply.value("imports", Json::array())) {
    text += field_line("import", fmt::format("{} from {}", symbol.at("name").get<std::string>(),
                                             symbol.value("module", "?")));
  }
  if (const Json requests = reply.value("requests", Json()); requests.is_object()) {
    text +=
        field_line("requests", fmt::format("{} loads, {} joined; first by {} (pid {}, uid {})",
                                           requests.value("loads", 0), requests.value("joined", 0),
                                           requests.value("comm", "?"), requests.value("pid", 0),
                                           requests.value("uid", 0)));
  }
  for (const Json& hazard : reply.value("hazards", Json::array())) {
    text += field_line("hazard", demangled(value_text(hazard)));
  }
  if (const auto thrown = reply.value("exceptions", 0); thrown > 0) {
    text += field_line("exceptions", std::to_string(thrown));
  }
  return text;
}

}  // namespace

Runner declare_info(CLI::App& verb) {
  auto what = std::make_shared<std::string>();
  verb.add_option("NAME|FILE", *what, "A loaded module, or a module file (no process needed)")
      ->required();
  return [what](const Options& options) {
    if (names_a_file(*what)) return show_file(options, *what);
    return run_on_targets(options, "info",
                          {[what](Session& session) {
                             return session.call(wire::method::info, {{"name", *what}});
                           },
                           show_module});
  };
}

}  // namespace molt::cli
