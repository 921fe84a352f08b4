// What quarantine leaves of an unloaded module, and what it does not. The size is set, so that it is
// used without a sanitizer too. What it is for, reports with names, is tested by quarantine_reports.sh.
#include <cstdlib>

#define MODULE_TEST_AUDIT
#include "fixture.hpp"

namespace {

constexpr std::size_t size = 2;
const int chosen = setenv("MOLT_QUARANTINE", std::to_string(size).c_str(), 1);

class Quarantine : public ModuleTest {
 protected:
  using Lines = std::vector<std::string>;

  // The store's files that are mapped.
  static std::set<std::string> mapped() {
    std::set<std::string> files;
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
      if (line.find("/store/") != std::string::npos) files.insert(line.substr(line.find('/')));
    }
    return files;
  }
  // "r-xp" and the like; "" where nothing is.
  static std::string rights_at(const void* address) {
    const auto wanted = reinterpret_cast<std::uintptr_t>(address);
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
      std::uintptr_t begin = 0, end = 0;
      char rights[5] = "";
      if (std::sscanf(line.c_str(), "%lx-%lx %4s", &begin, &end, rights) == 3 && begin <= wanted &&
          wanted < end) {
        return rights;
      }
    }
    return "";
  }
};

TEST_F(Quarantine, EverythingThatRunsAtTheEndRunsOnce) {
  ASSERT_EQ(chosen, 0);
  ASSERT_TRUE(is(load("mortal"), 0));
  const Answer answer = unload("mortal");
  EXPECT_TRUE(is(answer, 0));
  EXPECT_EQ(answer.reason, "");
  const auto all = under_tsan ? Lines{"exit", "function", "object"}
                              : Lines{"exit", "function", "handler", "object"};
  EXPECT_EQ(board().all_told(), all);
  // Until others have pushed it out, which is dlclose().
  const auto before = mapped();
  for (std::size_t i = 0; i < size; ++i) {
    ASSERT_TRUE(is(load("bare"), 0));
    ASSERT_TRUE(is(unload("bare"), 0));
  }
  EXPECT_NE(mapped(), before);
  EXPECT_EQ(board().all_told(), all);
}

TEST_F(Quarantine, TextIsInaccessibleAndTheNameIsFree) {
  ASSERT_TRUE(is(load("probe"), 0));
  const void* data = descriptor("probe");
  const auto* text = reinterpret_cast<const void*>(descriptor("probe")->init);
  EXPECT_EQ(rights_at(text), "r-xp");
  ASSERT_TRUE(is(unload("probe"), 0));
  EXPECT_EQ(rights_at(text), "---p");
  EXPECT_EQ(rights_at(data).front(), 'r');
  EXPECT_TRUE(is(unload("probe"), -ENOENT));
  EXPECT_EQ(on_probe(1), 0);
  for (const std::string& file : mapped()) EXPECT_TRUE(fs::exists(file)) << "reports read " << file;
  // The same content, beside it.
  ASSERT_TRUE(is(load("probe"), 0));
  EXPECT_EQ(on_probe(1), 101);
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Quarantine, TheOldestIsFreed) {
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(is(load("probe"), 0));
    ASSERT_TRUE(is(unload("probe"), 0));
  }
  const auto files = mapped();
  EXPECT_EQ(files.size(), size);
  ASSERT_FALSE(files.empty());
  std::size_t stored = 0;
  for ([[maybe_unused]] const auto& file :
       fs::directory_iterator(fs::path(*files.begin()).parent_path())) {
    ++stored;
  }
  EXPECT_EQ(stored, size);
}

TEST_F(Quarantine, ProvidersAreReleased) {
  ASSERT_TRUE(is(load("provider"), 0));
  ASSERT_TRUE(is(load("user"), 0));
  EXPECT_TRUE(is(unload("provider"), -EAGAIN));
  EXPECT_TRUE(is(unload("user"), 0));
  EXPECT_TRUE(is(unload("provider"), 0));
}

TEST_F(Quarantine, OldVersionsGoThere) {
  ASSERT_TRUE(is(load("probe"), 0));
  const auto* text = reinterpret_cast<const void*>(descriptor("probe")->init);
  const Answer answer = replace("probe", "probe_2");
  EXPECT_TRUE(is(answer, 0));
  EXPECT_EQ(answer.reason, "");
  EXPECT_EQ(rights_at(text), "---p");
  EXPECT_EQ(on_probe(1), 102);
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Quarantine, WhoMayStayBoundDoesNotGoThere) {
  ASSERT_TRUE(is(load("mortal_with_symbols"), 0));
  const void* data = descriptor("mortal");
  ASSERT_TRUE(is(unload("mortal"), 0));
  EXPECT_EQ(rights_at(data), "") << "another object may be bound to a symbol: dlclose() says so";

  ASSERT_TRUE(is(load("with_nodelete"), 0));
  EXPECT_TRUE(is(unload("with_nodelete"), 0, {"pinned", "NODELETE"}));
}

}  // namespace
