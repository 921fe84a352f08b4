// molt - looks at and changes the modules of running processes. One straight way: declare the
// options, parse them, run the one verb, say how it went.

#include "builder/capture.hpp"
#include "cli/help.hpp"
#include "cli/print.hpp"
#include "cli/verbs.hpp"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>

namespace molt::cli {
namespace {

constexpr Verb verbs[] = {
    {"ps", "", "List the processes with Molt", declare_ps},
    {"attach", "", "Put Molt into running processes", declare_attach},
    {"detach", "", "End Molt in processes that have no modules", declare_detach},
    {"run", "-- COMMAND [ARGUMENT]...", "Start a program with Molt in it", declare_run},
    {"doctor", "PID...", "Tell why processes can, or cannot, be attached to", declare_doctor},
    {"load", "FILE... [NAME=VALUE]...", "Load a module", declare_load},
    {"unload", "NAME...", "Unload modules", declare_unload},
    {"replace", "[NAME] FILE [NAME=VALUE]...", "Put a new version in the place of a live module",
     declare_replace},
    {"list", "", "List the modules of a process", declare_list},
    {"info", "NAME|FILE", "Show what a module or a module file is", declare_info},
    {"apply", "FILE [NAME=VALUE]...", "Put a livepatch in force", declare_apply},
    {"revert", "PATCH", "Take a livepatch back, and unload it", declare_revert},
    {"status", "", "List livepatches and how far the transition is", declare_status},
    {"blocking", "[NAME]", "Show who holds a transition up, or is in a module's code",
     declare_blocking},
    {"force", "PATCH", "End a transition without waiting for threads", declare_force},
    {"hook list", "", "List the hooks of a process and their callbacks", declare_hook_list},
    {"hook order", "HOOK|--all-hooks MODULE,MODULE...|--reset", "Set the order of callbacks",
     declare_hook_order},
    {"get", "PATH", "Print an attribute", declare_get},
    {"set", "PATH VALUE", "Write an attribute", declare_set},
    {"tree", "[PATH]", "Print objects and attributes as a tree", declare_tree},
    {"events", "", "Print the event log", declare_events},
    {"gc", "", "Free what unloaded modules still hold, where that is possible", declare_gc},
    {"audit", "NAME", "Show which memory of a process points into a module", declare_audit},
    {"wait", "[NAME]", "Wait for a module, or until no operation is under way", declare_wait},
    {"build", "--diff FILE --target FILE -- COMMAND [ARGUMENT]...",
     "Make a patch file of a diff and a build command", declare_build},
    {"check", "FILE...", "Tell whether module files can be loaded, and patch files fit",
     declare_check},
    {"version", "", "Print the version", declare_version},
    {"help", "[VERB]", "Explain a verb; with --all, every one", declare_help},
};

void declare_global_options(CLI::App& app, Options& options) {
  const char* const targets = "Which processes";
  const CLI::Range pid(1, 1 << 22);  // the kernel's PID_MAX_LIMIT
  Selection& selection = options.selection;
  app.add_option("-p,--pid", selection.pids, "This process; may be repeated")
      ->option_text("PID")
      ->delimiter(',')
      ->check(pid)
      ->allow_extra_args(false)
      ->group(targets);
  app.add_option("--exe", selection.exes, "All that run this program")
      ->option_text("PATH")
      ->allow_extra_args(false)
      ->group(targets);
  app.add_option("--name", selection.names, "All with this command name")
      ->option_text("COMM")
      ->allow_extra_args(false)
      ->group(targets);
  app.add_option("--tree", selection.trees, "This process and all below it")
      ->option_text("PID")
      ->check(pid)
      ->allow_extra_args(false)
      ->group(targets);
  app.add_flag("--all", selection.all, "All that this user may control")->group(targets);

  app.add_option("--timeout", options.timeout_s,
                 "How long to wait, a fraction allowed; 0: do not wait")
      ->option_text("SECONDS");
  app.add_flag("--json", options.json, "Print JSON, see molt(1)");
  app.add_flag("-n,--dry-run", options.dry_run, "Check and tell, but change nothing");
  app.add_flag("-v,--verbose", options.verbose, "Say more");
  app.add_flag("-q,--quiet", options.quiet, "Say nothing but failures");
}

// "hook list" is declared below its group "hook".
using Runners = std::map<const CLI::App*, Runner>;

Runners declare_verbs(CLI::App& app) {
  Runners runners;
  for (const Verb& verb : verbs) {
    const std::string name = verb.name;
    const std::size_t blank = name.find(' ');
    CLI::App* above = &app;
    if (blank != std::string::npos) {
      const std::string group = name.substr(0, blank);
      above = find_below(app, group);
      if (!above) above = app.add_subcommand(group)->require_subcommand(1)->fallthrough();
    }
    CLI::App* declared = above->add_subcommand(name.substr(blank + 1), verb.summary);
    declared->fallthrough();
    runners[declared] = verb.declare(*declared);
  }
  return runners;
}

// The verb of the command line; the program itself when there was none.
CLI::App* selected(CLI::App* app) {
  while (!app->get_subcommands().empty()) app = app->get_subcommands().front();
  return app;
}

void check_options(const Options& options) {
  constexpr double timeout_max_s = 2'000'000;  // as milliseconds it still fits in an int
  if (options.timeout_s && !(*options.timeout_s >= 0 && *options.timeout_s <= timeout_max_s)) {
    fail(ErrorClass::usage, EINVAL, "--timeout takes seconds from 0 to {:.0f}", timeout_max_s);
  }
}

// What the parser says of values is about its types.
std::string in_words(const CLI::ParseError& error) {
  const std::string text = error.what();
  if (const std::size_t at = text.find(": 1 required "); at != std::string::npos) {
    return text.substr(0, at) + " needs a value";
  }
  constexpr std::string_view unconverted = "Could not convert: ";
  if (text.starts_with(unconverted)) return text.substr(unconverted.size()) + " is no number";
  return text;
}

std::string explain(const CLI::ParseError& error, const CLI::App& app, const CLI::App* verb) {
  const std::string name = full_name(verb);
  if (verb->get_subcommands({}).empty()) {
    return fmt::format("{}: {}; see `molt help {}`", name, in_words(error), name);
  }
  // The parser's own words for these would be about subcommands.
  for (const std::string& word : app.remaining(true)) {
    if (!word.starts_with('-')) return fmt::format("there is no verb '{}'; see `molt help`", word);
  }
  if (app.remaining_size(true) > 0) {
    return fmt::format("there is no option '{}'; see `molt help`", app.remaining(true).front());
  }
  if (!dynamic_cast<const CLI::RequiredError*>(&error)) {
    return fmt::format("{}; see `molt help`", in_words(error));
  }
  return name.empty() ? "no verb given; see `molt help`"
                      : fmt::format("{} is half a verb; see `molt help {}`", name, name);
}

int run(int argc, char** argv) {
  CLI::App app("Loads, stacks, replaces and unloads modules in running processes.", "molt");
  app.formatter(std::make_shared<HelpFormatter>(verbs));
  app.require_subcommand(1);
  Options options;
  declare_global_options(app, options);
  app.set_help_flag("-h,--help", "Explain the verb");
  app.set_version_flag("--version", "molt " MOLT_VERSION, "Print the version");
  const Runners runners = declare_verbs(app);

  try {
    app.parse(argc, argv);
    check_options(options);
    return runners.at(selected(&app))(options);
  } catch (const CLI::Success& wanted) {  // --help, --version
    return app.exit(wanted);
  } catch (const CLI::ParseError& error) {
    // The parser may have stopped before it came to this option.
    for (int i = 1; i < argc; ++i) options.json |= std::strcmp(argv[i], "--json") == 0;
    return report_failure(
        options, full_name(selected(&app)),
        make_failure(ErrorClass::usage, EINVAL, explain(error, app, selected(&app))));
  } catch (const Failure& failure) {
    return report_failure(options, full_name(selected(&app)), failure);
  }
}

}  // namespace
}  // namespace molt::cli

int main(int argc, char** argv) {
  // In a build that `molt build` runs, every compiler is this program.
  if (argc > 0 && std::strcmp(argv[0], molt::builder::capture::program_name) == 0) {
    return molt::builder::run_captured_compiler(argc, argv);
  }
  int code = molt::cli::exit_failed;
  try {
    code = molt::cli::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "molt: {}\n", molt::cli::printable(error.what()));
  }
  if (!molt::cli::flush_output()) {
    fmt::print(stderr, "molt: cannot write the output: {}\n", std::strerror(errno));
    if (code == molt::cli::exit_done) code = molt::cli::exit_failed;
  }
  return code;
}
