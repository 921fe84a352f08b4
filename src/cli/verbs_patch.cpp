// Verbs for livepatches: modules that replace functions.

#include "cli/agent.hpp"
#include "cli/kept.hpp"
#include "cli/module_file.hpp"
#include "cli/print.hpp"
#include "cli/svg.hpp"
#include "cli/targets.hpp"
#include "cli/verbs.hpp"
#include "cli/witness.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

namespace molt::cli {
namespace {

constexpr int transition_ms = 30'000;

// A failure that says of a transition what came of it as well.
Failure with_outcome(const Failure& failure, std::string_view outcome) {
  Failure told = failure;
  told.message += fmt::format("; {}", outcome);
  return told;
}

void set_attribute(Session& session, const std::string& path, const char* value) {
  session.call(wire::method::set, {{"path", path}, {"value", value}});
}

Json wait_for(Session& session, const std::string& name, const char* event) {
  const Witness witness(session, "");
  return session.call_waiting(wire::method::wait, {{"name", name}, {"for", event}}, transition_ms);
}

// Why the patch of that live module, which is over, is held in memory; "": it is not. One of that name that was
// unloaded before may be held as well.
std::string why_held(Session& session, const std::string& name) {
  const auto of_name = [&](const Json& one) { return one.at("name") == name; };
  const Json reply = session.call(wire::method::patches);
  const auto& pinned = reply.at("pinned");
  const auto held = std::find_if(pinned.begin(), pinned.end(), of_name);
  if (held == pinned.end()) return "";
  const Json loaded = session.call(wire::method::list);
  const auto& modules = loaded.at("modules");
  const auto module = std::find_if(modules.begin(), modules.end(), of_name);
  const bool is_counted = module != modules.end() && module->value("refcount", 0) > 0;
  return is_counted ? held->value("reason", "") : "";
}

// A patch that may still be in use holds its module. That is not waited for: its name is free at once.
Json unload_module(Session& session, const std::string& name) {
  if (const std::string held = why_held(session, name); !held.empty()) {
    Json reply = session.call(wire::method::unload, {{"name", name}, {"lazy", true}});
    if (reply.at("result") != wire::result::resident) return reply;
    reply["reason"] = held;
    session.note(
        fmt::format("{}: reverted, but its memory stays: {}; it is freed as soon as no thread can "
                    "be in it, which "
                    "`molt wait -p {} {} --for freed` waits for",
                    name, held, session.process().pid, name));
    return reply;
  }
  const Witness witness(session, name);
  Json reply =
      session.call_waiting(wire::method::unload, {{"name", name}}, unload_ms, -1, unload_grace_ms);
  note_kept(session, name, reply, "result", "reverted");
  return reply;
}

[[noreturn]] void fail_missing(const std::string& name) {
  fail(ErrorClass::missing, ENOENT, "{}: no such patch is installed; `molt status` lists them",
       name);
}

bool is_installed(Session& session, const std::string& name) {
  const Json reply = session.call(wire::method::patches);
  const auto& all = reply.at("patches");
  return std::any_of(all.begin(), all.end(), [&](const Json& p) { return p.at("name") == name; });
}

// "": it is not loaded, as after `unload --resident`, which leaves a patch in force.
std::string module_state(Session& session, const std::string& name) {
  const Json reply = session.call(wire::method::list);
  for (const Json& module : reply.at("modules")) {
    if (module.at("name") == name) return module.value("state", "");
  }
  return "";
}

bool is_tainted_by_patches(const Json& loaded) {
  return loaded.value("taint", "").find('K') != std::string::npos;
}

// Of a file whose module is live without its patch. One that was a livepatch (`revert --keep`, or an attribute
// that was written) makes place for itself; any other module is none of ours.
void make_place(Session& session, const std::string& file, const Json& loaded) {
  const auto name = loaded.at("name").get<std::string>();
  if (!is_tainted_by_patches(loaded)) {
    fail(ErrorClass::missing, ENOENT, "{} is live, and enables no patch; `molt load {}` was enough",
         name, file);
  }
  unload_module(session, name);
}

// `molt apply`: load, wait; if threads hold it up for too long, take it back.
Json apply_one(Session& session, const std::string& file, const std::string& args,
               const std::string& as, bool no_wait) {
  const Fd fd = open_module_file(file);
  attach_if_absent(session);
  Json request = {{"path", std::filesystem::absolute(file).lexically_normal().string()}};
  if (!args.empty()) request["args"] = args;
  if (!as.empty()) request["name"] = as;
  if (session.options().dry_run) request["dry_run"] = true;
  const auto load = [&] {
    return with_traps_open(session, [&] {
      return session.call_waiting(wire::method::load, request, load_ms, fd.get());
    });
  };
  Json reply = load();
  if (session.options().dry_run) return reply;
  const auto name = reply.at("name").get<std::string>();
  if (reply.value("already", false) && !is_installed(session, name)) {
    make_place(session, file, reply);
    reply = load();
  }
  if (no_wait) return reply;
  try {
    reply["waited_ms"] = wait_for(session, name, "patched").value("waited_ms", std::int64_t{0});
  } catch (const Failure& failure) {
    // Somebody has turned it back, and may have unloaded it.
    const bool is_livepatch = is_tainted_by_patches(reply);
    if (failure.code == EAGAIN || (failure.kind == ErrorClass::missing && is_livepatch)) {
      if (is_installed(session, name)) throw;
      try {
        unload_module(session, name);
      } catch (const Failure&) {
      }
      fail(ErrorClass::failed, EAGAIN, "{}: it was reverted meanwhile, by somebody else", name);
    }
    if (failure.kind == ErrorClass::missing) {
      unload_module(session, name);
      throw with_outcome(failure, fmt::format("{} enables no patch; `molt load` it", file));
    }
    if (failure.kind != ErrorClass::stalled) throw;
    // Somebody else's transition: as it was before.
    if (reply.value("already", false)) {
      throw with_outcome(failure, "its transition goes on; `molt blocking` shows who holds it up");
    }
    set_attribute(session, "patches/" + name + "/enabled", "0");
    session.wait_at_least(take_back_ms);
    try {
      wait_for(session, name, "unpatched");
      unload_module(session, name);
    } catch (const Failure&) {
      throw with_outcome(failure, "it is being reverted; `molt blocking` shows who holds it up");
    }
    throw with_outcome(failure, "reverted; try again, with a longer --timeout, or --no-wait");
  }
  return reply;
}

// Whether it was us: somebody else may have disabled it since we looked.
bool disable(Session& session, const std::string& name) {
  try {
    set_attribute(session, "patches/" + name + "/enabled", "0");
    return true;
  } catch (const Failure&) {
    const Json reply = session.call(wire::method::patches);
    const auto& all = reply.at("patches");
    if (std::any_of(all.begin(), all.end(), [&](const Json& p) {
          return p.at("name") == name && p.value("enabled", false);
        })) {
      throw;
    }
    return false;
  }
}

Json revert_one(Session& session, const std::string& name, bool keep) {
  const Json before = session.call(wire::method::patches);
  const auto& all = before.at("patches");
  const auto patch =
      std::find_if(all.begin(), all.end(), [&](const Json& p) { return p.at("name") == name; });
  if (patch == all.end()) {
    fail_missing(name);
  }
  open_traps(session);
  // One that is on its way out already is waited for, and goes on if that takes too long.
  const bool is_enabled = patch->value("enabled", false) && disable(session, name);
  Json reply = {{"name", name}};
  try {
    reply["waited_ms"] = wait_for(session, name, "unpatched").value("waited_ms", std::int64_t{0});
  } catch (const Failure& failure) {
    if (failure.kind != ErrorClass::stalled) throw;
    if (!is_enabled) {
      throw with_outcome(failure, "its reversion goes on; `molt blocking` shows who holds it up");
    }
    set_attribute(session, "patches/" + name + "/enabled", "1");
    throw with_outcome(failure, "it is in force again; `molt blocking` shows who is in the way");
  }
  if (keep || module_state(session, name).empty()) return reply;
  try {
    const Json unloaded = unload_module(session, name);
    for (const char* field : {"result", "reason"}) reply[field] = unloaded.at(field);
  } catch (const Failure&) {
    // Unless somebody else unloads it, who reverts the patch too.
    if (module_state(session, name) == "live") throw;
    session.call_waiting(wire::method::wait, {{"name", name}, {"for", "gone"}}, unload_ms);
  }
  return reply;
}

// `enabled` turns when the callbacks before a transition have run; where it leads is told from its beginning.
std::string patch_state(const Json& patch, const Json& transition) {
  const bool enabled = patch.value("enabled", false);
  if (!patch.value("transition", false)) return enabled ? "enabled" : "disabled";
  const bool is_told = !transition.is_null() && transition.at("patch") == patch.at("name");
  const bool patching = is_told ? transition.value("target", "") == "patched" : enabled;
  return patching ? "patching" : "unpatching";
}

std::string functions_of(const Json& patch) {
  std::string text;
  for (const Json& object : patch.at("objects")) {
    for (const Json& function : object.at("functions")) {
      if (!text.empty()) text += ",";
      text += function.at("name").get<std::string>();
    }
  }
  return text.empty() ? "-" : demangled(text);
}

std::string progress_of(const Json& transition) {
  if (transition.is_null()) return "";
  const bool patching = transition.value("target", "") == "patched";
  return fmt::format("{}: {}, {} of {} threads done, {} left, {:.1f} s, {} tries{}\n",
                     printable(transition.at("patch").get<std::string>()),
                     patching ? "patching" : "unpatching", transition.value("done", 0),
                     transition.value("threads", 0), transition.value("left", 0),
                     transition.value("age_ms", 0) / 1000.0, transition.value("tries", 0),
                     transition.value("forced", false) ? ", forced" : "");
}

std::string show_status(const Json& reply) {
  Table table({{"ORDER", Table::right},
               {"PATCH", Table::left},
               {"STATE", Table::left},
               {"FUNCTIONS", Table::left}});
  for (const Json& patch : reply.at("patches")) {
    table.add({std::to_string(patch.value("stack_order", 0)), patch.at("name").get<std::string>(),
               patch_state(patch, reply.value("transition", Json())), functions_of(patch)});
  }
  std::string text = table.empty() ? "" : table.text();
  text += progress_of(reply.value("transition", Json()));
  for (const Json& pinned : reply.at("pinned")) {
    text += printable(fmt::format("{}: kept in memory: {}", pinned.at("name").get<std::string>(),
                                  pinned.value("reason", ""))) +
            "\n";
  }
  return text;
}

}  // namespace

Runner declare_apply(CLI::App& verb) {
  struct Words {
    std::string file;
    std::string name;
    std::vector<std::string> parameters;
    bool no_wait = false;
  };
  auto words = std::make_shared<Words>();
  verb.add_option("FILE", words->file, "The patch: a patch file, or a module that enables one")
      ->required();
  verb.add_option("--name", words->name, "Call it so, instead of by the name in the patch file");
  verb.add_option("NAME=VALUE", words->parameters, "Its parameters");
  verb.add_flag("--no-wait", words->no_wait, "Leave threads that hold it up to `molt status`");
  return [words](const Options& options) {
    std::string args;
    for (const std::string& parameter : words->parameters) {
      args += (args.empty() ? "" : " ") + parameter;
    }
    open_module_file(words->file);
    const auto show = [&options, words](const Json& reply) -> std::string {
      if (!options.verbose && !options.dry_run) return "";
      return fmt::format("{}: {}\n", reply.at("name").get<std::string>(),
                         options.dry_run  ? "would be applied"
                         : words->no_wait ? "its transition has begun"
                                          : "applied");
    };
    return run_on_targets(options, "apply",
                          {[=](Session& session) {
                             return apply_one(session, words->file, args, words->name,
                                              words->no_wait);
                           },
                           show, false, true});
  };
}

Runner declare_revert(CLI::App& verb) {
  auto name = std::make_shared<std::string>();
  auto keep = std::make_shared<bool>(false);
  verb.add_option("PATCH", *name, "The patch, by its module's name")->required();
  verb.add_flag("--keep", *keep, "Leave its module loaded");
  return [=](const Options& options) {
    refuse_dry_run(options, "revert");
    const auto show = [&options](const Json& reply) -> std::string {
      return options.verbose ? fmt::format("{}: reverted\n", reply.at("name").get<std::string>())
                             : "";
    };
    return run_on_targets(
        options, "revert",
        {[=](Session& session) { return revert_one(session, *name, *keep); }, show});
  };
}

Runner declare_status(CLI::App& verb) {
  auto svg = std::make_shared<std::string>();
  verb.add_option("--svg", *svg, "Draw the transition, or the last one, into this file")
      ->type_name("FILE");
  return [svg](const Options& options) {
    if (!svg->empty() && choose_targets(options.selection).size() > 1) {
      fail(ErrorClass::usage, EINVAL, "--svg draws one process; name it with -p");
    }
    const auto ask = [svg](Session& session) {
      Json reply = session.call(wire::method::patches);
      if (svg->empty()) return reply;
      if (reply.value("history", Json()).is_null()) {
        fail(ErrorClass::failed, ENOENT, "no patch has been applied there: nothing to draw");
      }
      std::ofstream file(*svg, std::ios::trunc);
      file << transition_svg(reply.at("history"));
      if (!file.flush()) {
        fail(ErrorClass::failed, errno, "cannot write {}: {}", *svg, std::strerror(errno));
      }
      return reply;
    };
    return run_on_targets(options, "status", {ask, show_status});
  };
}

Runner declare_force(CLI::App& verb) {
  auto name = std::make_shared<std::string>();
  verb.add_option("PATCH", *name, "The patch in transition")->required();
  return [name](const Options& options) {
    refuse_dry_run(options, "force");
    return run_on_targets(options, "force",
                          {[name](Session& session) {
                             if (!is_installed(session, *name)) fail_missing(*name);
                             set_attribute(session, "patches/" + *name + "/force", "1");
                             return Json{{"name", *name}};
                           },
                           nullptr});
  };
}

}  // namespace molt::cli
