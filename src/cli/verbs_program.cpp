// Verbs about this program.

#include "cli/help.hpp"
#include "cli/print.hpp"

#include <molt/molt.h>

#include <cerrno>
#include <memory>

namespace molt::cli {

Runner declare_version(CLI::App&) {
  return [](const Options& options) {
    print_result(options, "version", {{"version", MOLT_VERSION}, {"abi", MOLT_ABI}},
                 fmt::format("molt {} (module ABI {}, protocol schema {})\n", MOLT_VERSION,
                             MOLT_ABI, wire::schema));
    return int{exit_done};
  };
}

Runner declare_help(CLI::App& verb) {
  auto words = std::make_shared<std::vector<std::string>>();
  verb.add_option("VERB", *words, "The verb, of one word or two");
  CLI::App* program = verb.get_parent();
  return [words, program](const Options& options) {
    CLI::App* about = program;
    for (const std::string& word : *words) {
      about = find_below(*about, word);
      if (!about) fail(ErrorClass::usage, EINVAL, "there is no verb '{}'; see `molt help`", word);
    }
    // Not about->help(): for the program that would explain the verb that was parsed, this one.
    print_now(about->get_formatter()->make_help(
        about, "", options.selection.all ? CLI::AppFormatMode::All : CLI::AppFormatMode::Normal));
    return int{exit_done};
  };
}

}  // namespace molt::cli
