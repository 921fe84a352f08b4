#include "cli/verbs.hpp"
namespace molt::cli {
Runner declare_check(CLI::App& verb) { static std::vector<std::string> f; verb.add_option("FILE", f, "Module files")->required(); return [](const Options&) { return 0; }; }
int show_file(const Options&, const std::string&) { return 0; }
}
