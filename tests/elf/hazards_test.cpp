// Each case is looked at and then really loaded, used and unloaded by a small host: what is said of a
// file has to be what happens.

#include "elf/hazards.hpp"
#include "samples.hpp"

#include <cstdio>

namespace molt::elf {
namespace {

using Kinds = std::vector<Hazard::Kind>;

Kinds kinds_of(const std::vector<Hazard>& hazards) {
  Kinds kinds;
  for (const Hazard& hazard : hazards) {
    if (kinds.empty() || kinds.back() != hazard.kind) kinds.push_back(hazard.kind);
  }
  return kinds;
}

std::vector<Hazard> unload_hazards_of(const std::string& file) {
  return unload_hazards(*Sample(sample_path(file)));
}

// The last line that a host printed.
std::string run_host(const std::string& host, const std::vector<std::string>& files) {
  std::string command = sample_path(host);
  for (const std::string& file : files) command += " " + sample_path(file);
  FILE* output = popen(command.c_str(), "r");
  if (output == nullptr) return "popen failed";
  std::string line;
  char piece[256];
  while (std::fgets(piece, sizeof piece, output) != nullptr) line = piece;
  if (pclose(output) != 0) return "the host failed: " + line;
  return line.substr(0, line.find('\n'));
}

struct Case {
  const char* file;
  Kinds hazards;
  const char* outcome;  // in a host that has the C++ library
};

// gtest prints cases by this.
void PrintTo(const Case& c, std::ostream* out) { *out << c.file; }

class UnloadHazard : public testing::TestWithParam<Case> {};

TEST_P(UnloadHazard, is_what_happens) {
  const Case& c = GetParam();
  NEEDS_SAMPLE(c.file);
  EXPECT_EQ(kinds_of(unload_hazards_of(c.file)), c.hazards);
  EXPECT_EQ(run_host("host_cxx", {c.file}), c.outcome);
}

INSTANTIATE_TEST_SUITE_P(
    cases, UnloadHazard,
    testing::Values(Case{"plain.so", {}, "gone"},                                             //
                    Case{"nodelete.so", {Hazard::nodelete}, "stays"},                         //
                    Case{"unique.so", {Hazard::unique_symbol}, "stays"},                      //
                    Case{"unique_bsymbolic.so", {Hazard::unique_symbol}, "stays"},            //
                    Case{"unique_off.so", {}, "gone"},                                        //
                    Case{"unique_local.so", {}, "gone"},                                      //
                    Case{"unique_clang.so", {}, "gone"},                                      //
                    Case{"destructor.so", {Hazard::thread_local_destructor}, "stays"},        //
                    Case{"destructor_clang.so", {Hazard::thread_local_destructor}, "stays"},  //
                    Case{"regex.so", {Hazard::unique_symbol}, "stays"},                       //
                    Case{"regex_off.so", {}, "gone"},                                         //
                    Case{"regex_off_local.so", {}, "gone"},                                   //
                    Case{"regex_clang.so", {}, "gone"},                                       //
                    // What one might suspect, and glibc does not mind.
                    Case{"initfirst.so", {}, "gone"},    //
                    Case{"global.so", {}, "gone"},       //
                    Case{"ifunc.so", {}, "gone"},        //
                    Case{"atexit.so", {}, "gone"},       //
                    Case{"tls.so", {}, "gone"},          //
                    Case{"tls_static.so", {}, "gone"},   //
                    Case{"execstack.so", {}, "gone"},    //
                    Case{"no_exports.so", {}, "gone"}),  //
    [](const auto& test) { return test_name(test.param.file); });

TEST(hazards, unique_symbols_are_named) {
  auto hazards = unload_hazards_of("unique.so");
  ASSERT_EQ(hazards.size(), 1u);
  EXPECT_EQ(hazards[0].symbol, "_ZN7Counter5countE");
  EXPECT_EQ(hazards[0].text,
            "STB_GNU_UNIQUE symbol '_ZN7Counter5countE' is never unloaded; compile with "
            "-fno-gnu-unique, or link with a version script that makes it local");
}

TEST(hazards, thread_local_objects_are_named) {
  for (const char* file : {"destructor.so", "destructor_stripped.so"}) {
    auto hazards = unload_hazards_of(file);
    ASSERT_EQ(hazards.size(), 1u) << file;
    EXPECT_EQ(hazards[0].symbol, "per_thread_guard") << file;
    EXPECT_NE(hazards[0].text.find("'per_thread_guard'"), std::string::npos) << hazards[0].text;
  }
}

TEST(hazards, texts_are_one_line) {
  for (const char* file : {"nodelete.so", "unique.so", "destructor.so", "regex.so"}) {
    for (const Hazard& hazard : unload_hazards_of(file)) {
      EXPECT_FALSE(hazard.text.empty());
      EXPECT_EQ(hazard.text.find('\n'), std::string::npos);
    }
  }
}

// Not visible in the file: the C++ library comes with the module, binds to the module's copy of an
// inline function, and stays. Modules that export nothing but their descriptor are safe from it.
TEST(hazards, c_host_needs_a_version_script) {
  EXPECT_EQ(run_host("host_c", {"regex_off.so"}), "stays");
  EXPECT_EQ(run_host("host_c", {"regex_off_local.so"}), "gone");
}

// --- what outlasts the module -----------------------------------------------------------------------

Kinds effects_of(const std::string& file) {
  return kinds_of(lasting_effects(*Sample(sample_path(file))));
}

TEST(lasting_effects, none) {
  EXPECT_EQ(effects_of("plain.so"), Kinds{});
  EXPECT_EQ(effects_of("tls.so"), Kinds{});
  EXPECT_EQ(effects_of("destructor.so"), Kinds{});
  EXPECT_EQ(effects_of("tls_foreign.so"), Kinds{});
}

TEST(lasting_effects, static_tls_runs_out) {
  EXPECT_EQ(effects_of("tls_static.so"), Kinds{Hazard::static_tls});
  EXPECT_EQ(effects_of("tls_static_hidden.so"), Kinds{Hazard::static_tls});
  EXPECT_EQ(lasting_effects(*Sample(sample_path("tls_static.so")))[0].symbol, "per_thread");
  std::string outcome = run_host("host_c", {"tls_static.so", "tls_static_hidden.so"});
  EXPECT_NE(outcome.find("cannot allocate memory in static TLS block"), std::string::npos)
      << outcome;
}

TEST(lasting_effects, dynamic_and_foreign_tls_do_not_run_out) {
  EXPECT_EQ(run_host("host_c", {"tls.so", "tls_foreign.so"}), "fine");
}

TEST(lasting_effects, executable_stack) {
  EXPECT_EQ(effects_of("execstack.so"), Kinds{Hazard::executable_stack});
}

}  // namespace
}  // namespace molt::elf
