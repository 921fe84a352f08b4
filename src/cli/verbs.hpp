// verbs.hpp - one function for each verb. It declares the verb's own options, and returns what to
// run once they have been parsed. The runner gives the exit code, or throws a Failure.
#pragma once

#include "cli/options.hpp"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>

#include <functional>
#include <string>

namespace molt::cli {

using Runner = std::function<int(const Options&)>;

struct Verb {
  const char* name;      // of two words: the first one is a group
  const char* synopsis;  // its arguments
  const char* summary;
  Runner (*declare)(CLI::App&);
};

// verbs_process.cpp
Runner declare_ps(CLI::App& verb);
Runner declare_gc(CLI::App& verb);
Runner declare_wait(CLI::App& verb);
// verbs_attach.cpp
Runner declare_attach(CLI::App& verb);
Runner declare_detach(CLI::App& verb);
Runner declare_doctor(CLI::App& verb);
Runner declare_run(CLI::App& verb);
// verbs_program.cpp
Runner declare_version(CLI::App& verb);
Runner declare_help(CLI::App& verb);
// verbs_module.cpp
Runner declare_load(CLI::App& verb);
Runner declare_unload(CLI::App& verb);
Runner declare_replace(CLI::App& verb);
// verbs_list.cpp
Runner declare_list(CLI::App& verb);
Runner declare_info(CLI::App& verb);
// verbs_patch.cpp
Runner declare_apply(CLI::App& verb);
Runner declare_revert(CLI::App& verb);
Runner declare_status(CLI::App& verb);
Runner declare_blocking(CLI::App& verb);
Runner declare_force(CLI::App& verb);
// verbs_hook.cpp
Runner declare_hook_list(CLI::App& verb);
Runner declare_hook_order(CLI::App& verb);
// verbs_object.cpp
Runner declare_get(CLI::App& verb);
Runner declare_set(CLI::App& verb);
Runner declare_tree(CLI::App& verb);
// verbs_events.cpp
Runner declare_events(CLI::App& verb);
// verbs_blocking.cpp
// verbs_audit.cpp
Runner declare_audit(CLI::App& verb);
// verbs_build.cpp
Runner declare_build(CLI::App& verb);
// verbs_file.cpp
Runner declare_check(CLI::App& verb);
// `molt info FILE`: from the file alone, without a process.
int show_file(const Options& options, const std::string& path);

// Verbs whose request cannot be tried without doing it.
void refuse_dry_run(const Options& options, const char* verb);

}  // namespace molt::cli
