// The acceptance cases: small sources before and after a diff, built by each compiler, and applied to
// the program while it runs.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "world.hpp"

namespace molt::patch_test {
namespace {

struct Parameter {
  std::string file, name;
  Configuration configuration;
};
[[maybe_unused]] void PrintTo(const Parameter& parameter, std::ostream* out) {
  *out << parameter.name << " " << parameter.configuration.name();
}

const Configuration all_configurations[] = {
    {"gcc", "-O2", "pie"},      {"clang", "-O2", "pie"},   {"gcc", "-O0", "nopie"},
    {"gcc", "-O3", "library"},  {"clang", "-O1", "nopie"}, {"gcc", "-O1", "library"},
    {"clang", "-O3", "library"}, {"gcc", "-O3", "nopie"},  {"clang", "-O0", "pie"},
};
// Always the first two, and in turn one of the others; MOLT_CASES=all: each.
constexpr std::size_t always = 2;

bool is_about(const Case& made, const Configuration& configuration) {
  std::istringstream words(made.only);
  std::string word;
  while (words >> word) {
    const bool fits = word == configuration.compiler || word == configuration.level ||
                      word == configuration.kind ||
                      (word == "program" && configuration.kind != "library");
    if (!fits) return false;
  }
  return true;
}

std::vector<Parameter> parameters() {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(MOLT_CASES_FOLDER)) {
    if (entry.path().extension() == ".case") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  const char* wanted = std::getenv("MOLT_CASES");
  const bool all = wanted != nullptr && std::string(wanted) == "all";
  std::vector<Parameter> made;
  std::size_t turn = always;
  for (const std::string& file : files) {
    const Case one = read_case(file);
    std::size_t others = 0;
    for (std::size_t k = 0; k < std::size(all_configurations); ++k) {
      const std::size_t i = k < always ? k : always + (k + turn) % (std::size(all_configurations) - always);
      const Configuration& configuration = all_configurations[i];
      if (!is_about(one, configuration)) continue;
      if (i >= always && !all && others++ != 0) continue;
      made.push_back({file, std::filesystem::path(file).stem().string(), configuration});
    }
    ++turn;
  }
  return made;
}

class Cases : public testing::TestWithParam<Parameter> {};

std::string text_of(const std::vector<builder::Refusal>& refusals) {
  std::string text;
  for (const builder::Refusal& r : refusals) {
    text += r.kind + " " + r.symbol + " " + r.where + ": " + r.text + " | " + r.advice + "\n";
  }
  return text;
}

void run(World& world, const Case& made) {
  const std::string pid = std::to_string(world.pid());
  std::istringstream words(made.run);
  std::size_t left_before = 0;
  for (std::string word; words >> word;) {
    if (word == "apply") {
      ASSERT_EQ(0, world.molt({"apply", world.patch_path(), "-p", pid})) << world.said;
      left_before = world.anonymous_code().size();
    } else if (word == "revert") {
      ASSERT_EQ(0, world.molt({"revert", "fix", "-p", pid})) << world.said;
      ASSERT_EQ(0, world.molt({"list", "-p", pid})) << world.said;
      EXPECT_EQ(std::string::npos, world.said.find("fix")) << world.said;
      const auto left = world.anonymous_code();
      EXPECT_EQ(left_before - 1, left.size()) << "the patch's memory is still there";
    } else {
      const std::size_t equals = word.find('=');
      EXPECT_EQ(word.substr(equals + 1), world.ask(word.substr(0, equals))) << "step " << word;
    }
  }
}

TEST_P(Cases, AreBuiltOrRefused) {
  const Case made = read_case(GetParam().file);
  World world(made, GetParam().configuration);
  ASSERT_NO_THROW(world.compile());
  auto built = world.build();
  if (!made.refuse_kind.empty()) {
    ASSERT_FALSE(built) << "was built";
    const bool named = std::any_of(built.error().begin(), built.error().end(), [&](const auto& r) {
      return r.kind == made.refuse_kind &&
             (made.refuse_symbol.empty() || r.symbol.find(made.refuse_symbol) != std::string::npos);
    });
    EXPECT_TRUE(named) << text_of(built.error());
    for (const auto& r : built.error()) EXPECT_FALSE(r.text.empty());
    return;
  }
  ASSERT_TRUE(built) << text_of(built.error());
  if (!made.note.empty()) {
    std::string notes;
    for (const std::string& note : built->report.notes) notes += note + "\n";
    EXPECT_NE(std::string::npos, notes.find(made.note)) << notes;
  }
  if (made.nothing) {
    std::string functions;
    for (const auto& f : built->report.functions) functions += f.name + " ";
    EXPECT_TRUE(built->bytes.empty()) << functions;
    return;
  }
  ASSERT_FALSE(built->bytes.empty()) << "no functional change";
  world.write_patch(built->bytes);
  world.start();
  run(world, made);
}

INSTANTIATE_TEST_SUITE_P(All, Cases, testing::ValuesIn(parameters()), [](const auto& info) {
  std::string name = info.param.name + "_" + info.param.configuration.name();
  std::replace_if(name.begin(), name.end(), [](unsigned char c) { return !std::isalnum(c); }, '_');
  return name;
});

}  // namespace
}  // namespace molt::patch_test
