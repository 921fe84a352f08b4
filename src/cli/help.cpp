#include "cli/help.hpp"

#include <fmt/format.h>

namespace molt::cli {
namespace {

constexpr int column = 24;

std::string line(const std::string& what, const std::string& explanation) {
  // A long left side gets a line of its own.
  const char* between = what.size() + 2 > column ? "\n" : "";
  return fmt::format("  {:<{}}{}{:{}}{}\n", what, *between ? what.size() : column, between, "",
                     *between ? column + 2 : 0, explanation);
}

std::string option_name(const CLI::Option* option) {
  std::string name = option->get_name(false, true);
  if (const std::size_t comma = name.find(','); comma != std::string::npos) {
    name.insert(comma + 1, " ");
  }
  const std::string& value = option->get_option_text();
  return value.empty() ? name : name + " " + value;
}

// Arguments of the verb, then its options by groups.
std::string own_options(const CLI::App* app) {
  std::string text;
  for (const CLI::Option* option : app->get_options()) {
    if (!option->nonpositional()) text += line(option->get_name(true), option->get_description());
  }
  for (const std::string& group : app->get_groups()) {
    if (!group.empty() && group != "Options") text += "\n" + group + ":\n";
    for (const CLI::Option* option : app->get_options()) {
      // Told once, with the options of every verb.
      const bool is_help = option == app->get_help_ptr() && app->get_parent();
      if (option->nonpositional() && option->get_group() == group && !is_help) {
        text += line(option_name(option), option->get_description());
      }
    }
  }
  return text;
}

const CLI::App* declared(const CLI::App* app, const Verb& verb) {
  for (const CLI::App* below : app->get_subcommands({})) {
    const std::string name = full_name(below);
    if (name == verb.name) return below;
    if (std::string_view(verb.name).starts_with(name + " ")) return declared(below, verb);
  }
  return app;
}

}  // namespace

std::string full_name(const CLI::App* app) {
  if (!app->get_parent()) return "";
  const std::string above = full_name(app->get_parent());
  return above.empty() ? app->get_name() : above + " " + app->get_name();
}

CLI::App* find_below(CLI::App& app, const std::string& name) {
  const auto found = app.get_subcommands([&](CLI::App* one) { return one->get_name() == name; });
  return found.empty() ? nullptr : found.front();
}

std::string HelpFormatter::make_help(const CLI::App* app, std::string,
                                     CLI::AppFormatMode mode) const {
  const std::string name = full_name(app);
  return name.empty() ? overview(app, mode == CLI::AppFormatMode::All) : about(app, name);
}

std::string HelpFormatter::overview(const CLI::App* app, bool in_full) const {
  std::string text = app->get_description() + "\n\nusage: molt VERB [ARGUMENT]... [OPTION]...\n\n";
  if (in_full) {
    for (const Verb& verb : verbs_) text += about(declared(app, verb), verb.name) + "\n";
  } else {
    text += "Verbs, explained by `molt help VERB`:\n";
    for (const Verb& verb : verbs_) text += line(verb.name, verb.summary);
  }
  if (!in_full) text += "\n";
  return text + "Options of every verb:\n" + own_options(app);
}

std::string HelpFormatter::about(const CLI::App* app, const std::string& name) const {
  std::string text;
  for (const Verb& verb : verbs_) {
    if (name != verb.name && !std::string_view(verb.name).starts_with(name + " ")) continue;
    text += fmt::format("usage: molt {} {}{}[OPTION]...\n  {}.\n", verb.name, verb.synopsis,
                        *verb.synopsis ? " " : "", verb.summary);
  }
  return text + own_options(app);
}

}  // namespace molt::cli
