// The acceptance cases: small sources before and after a diff, built by each compiler, and applied to
// the program while it runs.

#include <elf.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <regex>
#include <set>
#include <sstream>

#include "abi/patch_file.hpp"
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
    {"gcc", "-O2", "pie"},       {"clang", "-O2", "pie"},
    {"gcc", "-O0", "nopie"},     {"gcc", "-O3", "library"},
    {"clang", "-O1", "nopie"},   {"gcc", "-O1 -falign-functions=16", "library"},
    {"clang", "-O3", "library"}, {"gcc", "-O3", "nopie"},
    {"clang", "-O0", "pie"},
};
// By default one of gcc's and one of clang's, in turn; MOLT_CASES=all: each.

bool is_about(const Case& made, const Configuration& configuration) {
  std::istringstream words(made.only);
  std::string word;
  while (words >> word) {
    const bool fits = word == configuration.compiler || word == configuration.level ||
                      word == configuration.kind ||
                      (word == "program" && configuration.kind != "library") ||
                      (word == "pic" && configuration.kind != "nopie");
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
  std::size_t turn = 0;
  for (const std::string& file : files) {
    const Case one = read_case(file);
    std::set<std::string> compilers;
    for (std::size_t k = 0; k < std::size(all_configurations); ++k) {
      const Configuration& configuration =
          all_configurations[(k + turn) % std::size(all_configurations)];
      if (!is_about(one, configuration)) continue;
      if (!compilers.insert(configuration.compiler).second && !all) continue;
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

// "f g", sorted; a copy that the compiler made (f.constprop.0) as f.constprop.
std::string replaced_by(const builder::PatchReport& report) {
  std::set<std::string> names;
  for (const auto& f : report.functions) {
    const std::size_t number = f.name.find_last_not_of("0123456789");
    const bool is_numbered = number != std::string::npos && f.name[number] == '.';
    names.insert(is_numbered ? f.name.substr(0, number) : f.name);
  }
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : " ") + name;
  return text;
}

void run(World& world, const Case& made) {
  const std::string pid = std::to_string(world.pid());
  std::istringstream words(made.run);
  unsigned long address = 0;  // of the patch's memory
  for (std::string word; words >> word;) {
    if (word == "apply") {
      ASSERT_EQ(0, world.molt({"apply", world.patch_path(), "-p", pid})) << world.said;
      ASSERT_EQ(0, world.molt({"list", "--json", "-p", pid})) << world.said;
      const std::size_t at = world.said.find("\"address\":");
      ASSERT_NE(std::string::npos, at) << world.said;
      // A number, or a text of one.
      address =
          std::strtoul(world.said.c_str() + world.said.find_first_of("0123456789", at), nullptr, 0);
      EXPECT_TRUE(world.has_code_at(address)) << world.said;
    } else if (word == "revert") {
      ASSERT_EQ(0, world.molt({"revert", "fix", "-p", pid})) << world.said;
      ASSERT_EQ(0, world.molt({"list", "-p", pid})) << world.said;
      EXPECT_EQ(std::string::npos, world.said.find("fix")) << world.said;
      EXPECT_FALSE(world.has_code_at(address)) << "the patch's memory is still there";
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
      return r.kind == made.refuse_kind && r.symbol.find(made.refuse_symbol) != std::string::npos &&
             (r.where + ": " + r.text).find(made.says) != std::string::npos;
    });
    EXPECT_TRUE(named) << text_of(built.error());
    for (const auto& r : built.error()) {
      EXPECT_FALSE(r.text.empty());
      EXPECT_FALSE(r.advice.empty()) << r.text;
      EXPECT_TRUE(std::regex_search(r.where, std::regex(R"(unit[0-9]?\.\w+:[0-9]+$)")))
          << r.where << ": " << r.text;
    }
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
  if (!made.replaced.empty()) {
    EXPECT_EQ(made.replaced, replaced_by(built->report));
  }
  world.write_patch(built->bytes);
  world.start();
  run(world, made);
}

// --- several patches ---

// Of one function: the second is checked against what the program is, not what the first put there.
TEST(Stacked, PatchesOfOneFunctionGoInAnyOrder) {
  const Case made = read_case(MOLT_CASES_FOLDER "/static_data.case");
  World world(made, all_configurations[0]);
  ASSERT_NO_THROW(world.compile());
  auto built = world.build();
  ASSERT_TRUE(built) << text_of(built.error());
  world.write_patch(built->bytes);
  world.start();
  const std::string pid = std::to_string(world.pid());
  const auto molt = [&](std::vector<std::string> words) {
    words.insert(words.end(), {"-p", pid});
    return world.molt(words);
  };
  ASSERT_EQ(0, molt({"attach"})) << world.said;
  EXPECT_EQ(0, molt({"apply", "-n", world.patch_path()})) << world.said;
  EXPECT_EQ("1", world.ask("1"));
  ASSERT_EQ(0, molt({"apply", world.patch_path(), "--name", "first"})) << world.said;
  EXPECT_EQ("102", world.ask("1"));
  ASSERT_EQ(0, molt({"apply", world.patch_path(), "--name", "second"})) << world.said;
  EXPECT_EQ("103", world.ask("1"));
  EXPECT_NE(0, molt({"replace", "first", world.patch_path()}));
  ASSERT_EQ(0, molt({"revert", "first"})) << world.said;
  EXPECT_EQ("104", world.ask("1"));
  ASSERT_EQ(0, molt({"revert", "second"})) << world.said;
  EXPECT_EQ("5", world.ask("1"));
  EXPECT_EQ(1u, world.anonymous_code().size());  // the pool of the redirects
}

// --- negative controls: a patch file that is not what it was ---

struct Damage {
  const char* name;
  std::function<void(std::vector<std::byte>&)> make;
  const char* words;  // of the one line that says why
};
void PrintTo(const Damage& damage, std::ostream* out) { *out << damage.name; }

std::size_t find(const std::vector<std::byte>& bytes, std::string_view text) {
  const std::string_view all(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return all.find(text);
}

// The section's content in the file.
std::size_t section_at(const std::vector<std::byte>& bytes, std::string_view wanted) {
  Elf64_Ehdr header;
  std::memcpy(&header, bytes.data(), sizeof header);
  const auto section = [&](std::size_t i) {
    Elf64_Shdr one;
    std::memcpy(&one, bytes.data() + header.e_shoff + i * sizeof one, sizeof one);
    return one;
  };
  const char* names =
      reinterpret_cast<const char*>(bytes.data()) + section(header.e_shstrndx).sh_offset;
  for (std::size_t i = 0; i < header.e_shnum; ++i) {
    if (names + section(i).sh_name == wanted) return section(i).sh_offset;
  }
  return bytes.size();
}

const Damage damages[] = {
    {"BuildId",
     [](auto& bytes) {
       // The texts of the tables: the build-id is the second, of 40 digits.
       const std::size_t at = section_at(bytes, ".molt.strings") + 1;
       std::size_t id = at;
       while (bytes[id] != std::byte{0}) ++id;
       for (std::size_t i = at; i < bytes.size(); ++i) {
         const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + i);
         if (text.size() == 40 &&
             text.find_first_not_of("0123456789abcdef") == std::string_view::npos) {
           bytes[i] = bytes[i] == std::byte{'0'} ? std::byte{'1'} : std::byte{'0'};
           return;
         }
       }
     },
     "build-id"},
    {"OldHash",
     [](auto& bytes) {
       bytes[section_at(bytes, ".molt.funcs") + offsetof(patch_file::Function, old_hash)] ^=
           std::byte{1};
     },
     "bytes differ"},
    {"OldAddress",
     [](auto& bytes) {
       bytes[section_at(bytes, ".molt.funcs") + offsetof(patch_file::Function, old_address)] ^=
           std::byte{8};
     },
     "bytes differ"},
    {"SymbolAbsent",
     [](auto& bytes) {
       const std::size_t at = find(bytes, "getppid");
       bytes[at] = std::byte{'x'};
     },
     "xetppid"},
    {"OutOfReach",
     [](auto& bytes) {
       // A call of a library, by a distance that no veneer can make good.
       Elf64_Rela r;
       std::size_t at = section_at(bytes, ".rela.text.step");
       for (;; at += sizeof r) {
         std::memcpy(&r, bytes.data() + at, sizeof r);
         if (ELF64_R_TYPE(r.r_info) == R_X86_64_PLT32) break;
       }
       r.r_addend = std::int64_t{1} << 40;
       std::memcpy(bytes.data() + at, &r, sizeof r);
     },
     "out of its reach"},
    {"CutOff", [](auto& bytes) { bytes.resize(bytes.size() - 100); }, "molt: "},
    {"Version",
     [](auto& bytes) {
       bytes[section_at(bytes, ".molt.target") + offsetof(patch_file::Header, version)] =
           std::byte{9};
     },
     "version 9"},
    {"Empty", [](auto& bytes) { bytes.clear(); }, "empty"},
};

class Damaged : public testing::TestWithParam<Damage> {};

TEST_P(Damaged, IsRefusedInOneLineAndTheProcessGoesOn) {
  const Case made = read_case(MOLT_CASES_FOLDER "/damaged.case");
  World world(made, all_configurations[0]);
  ASSERT_NO_THROW(world.compile());
  auto built = world.build();
  ASSERT_TRUE(built) << text_of(built.error());
  auto bytes = built->bytes;
  GetParam().make(bytes);
  ASSERT_NE(built->bytes, bytes) << "nothing was damaged";
  world.write_patch(bytes);
  world.start();
  EXPECT_EQ("2", world.ask("1"));
  const std::string pid = std::to_string(world.pid());
  ASSERT_EQ(0, world.molt({"attach", "-p", pid})) << world.said;
  const std::size_t before = world.anonymous_code().size();
  EXPECT_NE(0, world.molt({"apply", world.patch_path(), "-p", pid}));
  EXPECT_NE(std::string::npos, world.said.find(GetParam().words)) << world.said;
  EXPECT_EQ(1, std::count(world.said.begin(), world.said.end(), '\n')) << world.said;
  EXPECT_EQ("2", world.ask("1"));
  EXPECT_EQ(before, world.anonymous_code().size());
  ASSERT_EQ(0, world.molt({"list", "-p", pid})) << world.said;
  EXPECT_EQ(std::string::npos, world.said.find("fix")) << world.said;
  // And the sound one is taken all the same.
  world.write_patch(built->bytes);
  ASSERT_EQ(0, world.molt({"apply", world.patch_path(), "-p", pid})) << world.said;
  EXPECT_EQ("12", world.ask("1"));
}
INSTANTIATE_TEST_SUITE_P(Files, Damaged, testing::ValuesIn(damages),
                         [](const auto& info) { return std::string(info.param.name); });

INSTANTIATE_TEST_SUITE_P(All, Cases, testing::ValuesIn(parameters()), [](const auto& info) {
  std::string name = info.param.name + "_" + info.param.configuration.name();
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return !std::isalnum(c); }, '_');
  return name;
});

}  // namespace
}  // namespace molt::patch_test
