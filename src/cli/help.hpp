// help.hpp - what `molt help`, `molt help VERB` and --help print. tests/cli holds it against the
// man page.
#pragma once

#include "cli/verbs.hpp"

#include <span>
#include <string>

namespace molt::cli {

class HelpFormatter : public CLI::FormatterBase {
 public:
  explicit HelpFormatter(std::span<const Verb> verbs) : verbs_(verbs) {}
  // In mode All the verbs' own options are told as well.
  std::string make_help(const CLI::App* app, std::string name,
                        CLI::AppFormatMode mode) const override;

 private:
  std::string overview(const CLI::App* app, bool in_full) const;
  std::string about(const CLI::App* app, const std::string& name) const;

  std::span<const Verb> verbs_;
};

// "hook list" for the verb below its group; "" for the program.
std::string full_name(const CLI::App* app);
// The verb or group of that name directly below, or nothing.
CLI::App* find_below(CLI::App& app, const std::string& name);

}  // namespace molt::cli
