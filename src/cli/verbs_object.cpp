// Verbs for the tree of objects and attributes.

#include "cli/print.hpp"
#include "cli/targets.hpp"
#include "cli/verbs.hpp"

#include <cerrno>
#include <memory>

namespace molt::cli {
namespace {

// One line for each node, indented by its depth below the first.
std::string show_tree(const Json& reply) {
  std::string text;
  std::vector<std::string> above;  // paths of the objects around the current node
  for (const Json& node : reply.at("nodes")) {
    auto path = node.at("path").get<std::string>();
    if (path.size() > 1 && path.ends_with('/')) path.pop_back();
    while (!above.empty() && !path.starts_with(above.back() + "/")) above.pop_back();
    const std::string name = above.empty() ? path : path.substr(above.back().size() + 1);

    const auto kind = node.at("kind").get<std::string>();
    text += fmt::format("{:{}}{}", "", 2 * above.size(), printable(name));
    if (kind == "object") {
      text += "/";
      above.push_back(path);
    } else if (kind == "link") {
      text += " -> " + printable(value_text(node.value("target", Json("?"))));
    } else if (node.contains("value")) {
      text += " = " + printable(value_text(node["value"]));
    }
    text += "\n";
  }
  return text;
}

}  // namespace

Runner declare_get(CLI::App& verb) {
  auto path = std::make_shared<std::string>();
  verb.add_option("PATH", *path, "An attribute, such as modules/NAME/refcnt")->required();
  return [path](const Options& options) {
    return run_on_targets(
        options, "get",
        {[path](Session& session) {
           return session.call(wire::method::get, {{"path", *path}});
         },
         [](const Json& reply) { return printable(value_text(reply.at("value"))) + "\n"; }});
  };
}

Runner declare_set(CLI::App& verb) {
  auto path = std::make_shared<std::string>();
  auto value = std::make_shared<std::string>();
  verb.add_option("PATH", *path, "An attribute, such as modules/NAME/parameters/P")->required();
  verb.add_option("VALUE", *value, "Its new value; one that begins with - goes behind --")
      ->required();
  return [path, value](const Options& options) {
    refuse_dry_run(options, "set");
    return run_on_targets(
        options, "set",
        {[=](Session& session) {
           return session.call(wire::method::set, {{"path", *path}, {"value", *value}});
         },
         nullptr});
  };
}

Runner declare_tree(CLI::App& verb) {
  auto path = std::make_shared<std::string>();
  verb.add_option("PATH", *path, "The object to begin with; all of them without it");
  return [path](const Options& options) {
    Json parameters = Json::object();
    if (!path->empty()) parameters["path"] = *path;
    return run_on_targets(
        options, "tree",
        {[parameters](Session& session) { return session.call(wire::method::tree, parameters); },
         show_tree});
  };
}

void refuse_dry_run(const Options& options, const char* verb) {
  if (!options.dry_run) return;
  fail(ErrorClass::usage, EINVAL, "{} has no dry run; leave out -n to do it", verb);
}

}  // namespace molt::cli
