// Verbs that change which modules a process has.

#include "cli/agent.hpp"
#include "cli/kept.hpp"
#include "cli/module_file.hpp"
#include "cli/print.hpp"
#include "cli/targets.hpp"
#include "cli/verbs.hpp"
#include "cli/witness.hpp"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <memory>

namespace molt::cli {
namespace {

// "limit=5", but not "./odd=name.so".
bool is_parameter(const std::string& word) {
  const std::size_t equals = word.find('=');
  return equals != std::string::npos && equals > 0 && word.find('/') >= equals;
}

// One text, as the process takes them apart again: at blanks outside of double quotes.
std::string join_parameters(const std::vector<std::string>& parameters) {
  std::string args;
  for (const std::string& parameter : parameters) {
    if (!args.empty()) args += ' ';
    // The process would take them for its own.
    if (parameter.find('"') != std::string::npos) {
      fail(ErrorClass::usage, EINVAL,
           "{}: a value with double quotes cannot be passed here; `molt set` can set it afterwards",
           parameter);
    }
    if (parameter.find_first_of(" \t\n\r") == std::string::npos) {
      args += parameter;
    } else {
      const std::size_t value = parameter.find('=') + 1;
      args += parameter.substr(0, value) + '"' + parameter.substr(value) + '"';
    }
  }
  return args;
}

Json request_for_file(const Options& options, const std::string& file, const std::string& args) {
  Json parameters = {{"path", std::filesystem::absolute(file).lexically_normal().string()}};
  if (!args.empty()) parameters["args"] = args;
  if (options.dry_run) parameters["dry_run"] = true;
  return parameters;
}

// Each process gets an open file of its own: a shared one would share its position.
Json call_with_file(Session& session, std::string_view method, const std::string& file,
                    Json parameters) {
  const Fd fd = open_module_file(file);
  return session.call_waiting(method, std::move(parameters), load_ms, fd.get());
}

void note_warnings(Session& session, const Json& reply) {
  for (const Json& warning : reply.value("warnings", Json::array())) {
    session.note(demangled(
        fmt::format("{}: {}", reply.at("name").get<std::string>(), warning.get<std::string>())));
  }
}

std::string describe_load(const Json& reply) {
  if (reply.value("already", false)) return "already loaded";
  return reply.value("shared", false) ? "loaded, together with another request for it" : "loaded";
}

struct LoadWords {
  std::vector<std::string> words;  // files and parameters, as they came
  bool force = false;
  bool probe = false;

  std::vector<std::string> files;
  std::string args;

  void take_apart() {
    std::vector<std::string> parameters;
    for (const std::string& word : words) (is_parameter(word) ? parameters : files).push_back(word);
    args = join_parameters(parameters);
    if (files.empty()) {
      fail(ErrorClass::usage, EINVAL,
           "no file given, only parameters; write ./{0} if {0} is a file", words[0]);
    }
    if (files.size() > 1 && !probe) {
      fail(ErrorClass::usage, EINVAL,
           "several files are loaded with --probe only; load them one by one, or add --probe");
    }
    if (files.size() > 1 && !args.empty()) {
      fail(ErrorClass::usage, EINVAL, "parameters go with one file; load {} by itself", files[0]);
    }
    // Before any process is bothered.
    for (const std::string& file : files) open_module_file(file);
  }
};

Json load_file(Session& session, const LoadWords& words, const std::string& file) {
  Json parameters = request_for_file(session.options(), file, words.args);
  if (words.force) parameters["force"] = true;
  if (words.probe) parameters["probe"] = true;
  const auto load = [&] { return call_with_file(session, wire::method::load, file, parameters); };
  Json reply = hooks_functions(file) ? with_traps_open(session, load) : load();
  note_warnings(session, reply);
  return reply;
}

// Keeps what fits; what says that it does not fit is no failure.
Json probe_files(Session& session, const LoadWords& words) {
  int loaded = 0;
  int already = 0;
  int declined = 0;
  Json results = Json::array();
  for (const std::string& file : words.files) {
    Json result = {{"file", file}};
    try {
      const Json reply = load_file(session, words, file);
      result.update(reply);
      result.erase("schema");
      ++(reply.value("already", false) ? already : loaded);
      session.part_done();
    } catch (const Failure& failure) {
      // Its init says so, or it wants hooks or symbols that this process has not.
      if (failure.code == ENODEV || failure.kind == ErrorClass::refused) {
        result["declined"] = failure.message;
        ++declined;
        session.part_done();
      } else {
        result["error"] = failure.json();
        session.part_failed(failure);
      }
    }
    results.push_back(std::move(result));
  }
  return {{"loaded", loaded},
          {"already", already},
          {"declined", declined},
          {"failed", session.failures().size()},
          {"results", std::move(results)}};
}

std::string show_probe(const Json& reply, const Options& options) {
  if (options.quiet) return "";
  std::string text;
  for (const Json& result : reply.at("results")) {
    if (!options.verbose || result.contains("error")) continue;
    const auto file = result.at("file").get<std::string>();
    text += result.contains("declined")
                ? printable(fmt::format("{}: not for this process: {}", file,
                                        result["declined"].get<std::string>())) +
                      "\n"
                : fmt::format("{}: {}\n", file, describe_load(result));
  }
  return text + fmt::format("{}{} loaded, {} already there, {} not for this process, {} failed\n",
                            options.dry_run ? "would be: " : "", reply.at("loaded").get<int>(),
                            reply.at("already").get<int>(), reply.at("declined").get<int>(),
                            reply.at("failed").get<int>());
}

}  // namespace

Runner declare_load(CLI::App& verb) {
  auto words = std::make_shared<LoadWords>();
  verb.add_option("FILE", words->words, "Module files, and parameters as NAME=VALUE")->required();
  verb.add_flag("--force", words->force, "Load although it was built for another Molt; taints");
  verb.add_flag("--probe", words->probe,
                "Load all files, keep those that accept this process, print how many");
  return [words](const Options& options) {
    words->take_apart();
    if (words->probe) {
      return run_on_targets(
          options, "load",
          {[words](Session& session) {
             attach_if_absent(session);
             return probe_files(session, *words);
           },
           [&options](const Json& reply) { return show_probe(reply, options); }, false, true});
    }
    const auto show = [&options](const Json& reply) -> std::string {
      const std::string name = reply.at("name").get<std::string>();
      if (options.dry_run) {
        return fmt::format("{}: {}\n", name,
                           reply.value("already", false) ? "already loaded" : "would be loaded");
      }
      return options.verbose ? fmt::format("{}: {}\n", name, describe_load(reply)) : "";
    };
    return run_on_targets(options, "load",
                          {[words](Session& session) {
                             attach_if_absent(session);
                             return load_file(session, *words, words->files[0]);
                           },
                           show, false, true});
  };
}

namespace {

struct UnloadHow {
  bool resident = false;
  bool lazy = false;
  bool ignore_pointers = false;
};

Json unload_one(Session& session, const std::string& name, const UnloadHow& how) {
  Json parameters = {{"name", name}};
  if (how.resident) parameters["resident"] = true;
  if (how.lazy) parameters["lazy"] = true;
  if (how.ignore_pointers) parameters["ignore_pointers"] = true;
  if (session.options().dry_run) parameters["dry_run"] = true;
  open_traps_for(session, name);
  const Witness witness(session, name);
  Json reply = session.call_waiting(wire::method::unload, std::move(parameters), unload_ms, -1,
                                    unload_grace_ms);
  if (!how.resident && !how.lazy) note_kept(session, name, reply, "result");
  return reply;
}

Json unload_each(Session& session, const std::vector<std::string>& names, const UnloadHow& how) {
  Json results = Json::array();
  for (const std::string& name : names) {
    Json result = {{"name", name}};
    try {
      result.update(unload_one(session, name, how));
      result.erase("schema");
      session.part_done();
    } catch (const Failure& failure) {
      result["error"] = failure.json();
      session.part_failed(failure);
    }
    results.push_back(std::move(result));
  }
  return {{"results", std::move(results)}};
}

std::string show_unloaded(const Json& reply, const Options& options) {
  if (reply.contains("error") || (!options.verbose && !options.dry_run)) return "";
  const auto name = reply.at("name").get<std::string>();
  const auto result = reply.at("result").get<std::string>();
  if (options.dry_run) {
    const std::string who = reply.value("reason", "");
    return printable(fmt::format("{}: would be {}{}{}", name, result,
                                 who.empty() ? "" : ", after a wait for ", who)) +
           "\n";
  }
  return fmt::format("{}: {} ({} us until nobody was inside)\n", name, result,
                     reply.value("drain_us", std::int64_t{0}));
}

}  // namespace

Runner declare_unload(CLI::App& verb) {
  auto names = std::make_shared<std::vector<std::string>>();
  auto how = std::make_shared<UnloadHow>();
  verb.add_option("NAME", *names, "Modules, unloaded in this order")->required();
  verb.add_flag("--resident", how->resident,
                "Leave the memory until `molt gc`, wait for nobody inside");
  verb.add_flag("--lazy", how->lazy,
                "Wait for nobody; free the memory in the background when that is safe");
  verb.add_flag("--ignore-pointers", how->ignore_pointers,
                "Free the memory although the process still has addresses in it");
  return [names, how](const Options& options) {
    if (names->size() == 1) {
      return run_on_targets(
          options, "unload",
          {[=](Session& session) { return unload_one(session, names->front(), *how); },
           [&options](const Json& reply) { return show_unloaded(reply, options); }});
    }
    const auto show = [&options](const Json& reply) {
      std::string text;
      for (const Json& result : reply.at("results")) text += show_unloaded(result, options);
      return text;
    };
    return run_on_targets(
        options, "unload",
        {[=](Session& session) { return unload_each(session, *names, *how); }, show});
  };
}

Runner declare_replace(CLI::App& verb) {
  auto words = std::make_shared<std::vector<std::string>>();
  auto force = std::make_shared<bool>(false);
  verb.add_option("[NAME] FILE", *words,
                  "The module, if not the one the file is for; its new file; parameters")
      ->required();
  verb.add_flag("--force", *force, "Load although it was built for another Molt; taints");
  return [words, force](const Options& options) {
    std::vector<std::string> names;
    std::vector<std::string> parameters;
    for (const std::string& word : *words)
      (is_parameter(word) ? parameters : names).push_back(word);
    if (names.empty() || names.size() > 2) {
      fail(ErrorClass::usage, EINVAL, "replace takes [NAME] FILE; see `molt help replace`");
    }
    const std::string file = names.back();
    const std::string args = join_parameters(parameters);
    open_module_file(file);

    const auto ask = [&](Session& session) {
      Json request = request_for_file(options, file, args);
      if (names.size() == 2) request["name"] = names[0];
      if (*force) request["force"] = true;
      const auto replace = [&] {
        return call_with_file(session, wire::method::replace, file, request);
      };
      Json reply = hooks_functions(file) ? with_traps_open(session, replace) : replace();
      note_warnings(session, reply);
      note_kept(session,
                fmt::format("{} {}", reply.at("name").get<std::string>(), reply.value("from", "")),
                reply, "old");
      return reply;
    };
    const auto show = [&options](const Json& reply) -> std::string {
      if (options.dry_run) {
        return fmt::format("{}: would be {} -> {}\n", reply.at("name").get<std::string>(),
                           reply.value("from", "?"), reply.value("to", "?"));
      }
      if (!options.verbose) return "";
      return fmt::format("{}: {} -> {}, {} bytes of state, paused {} us, the old one {}\n",
                         reply.at("name").get<std::string>(), reply.value("from", "?"),
                         reply.value("to", "?"), reply.value("state_bytes", std::int64_t{0}),
                         reply.value("pause_us", std::int64_t{0}),
                         reply.at("old").get<std::string>());
    };
    return run_on_targets(options, "replace", {ask, show});
  };
}

}  // namespace molt::cli
