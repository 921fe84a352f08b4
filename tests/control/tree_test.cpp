// What is in the tree of a process, and how paths lead to it.
#include "control/tree.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>

#include "control/content.hpp"
#include "fake.hpp"

using namespace molt;
using namespace molt::control;

namespace {

template <class T>
int code_of(const Result<T>& result) {
  return result ? 0 : result.error().code;
}

class TreeTest : public testing::Test {
 protected:
  void SetUp() override {
    fake::reset();
    module::set_observer(&tree_observer());
    forget_objects();
    forget_tree();
    fixed_ = (static_cast<void>(tree()), object_counts().live);
  }
  void TearDown() override {
    fake::reset();
    EXPECT_EQ(object_counts().live, fixed_) << "objects leaked";
    module::set_observer(nullptr);
  }

  static std::string get(const std::string& path) {
    const auto value = tree().get(path);
    return value ? *value : std::string("!") + errno_name(value.error().code);
  }
  static int set(const std::string& path, const std::string& value) {
    return code_of(tree().set(path, value));
  }
  static std::vector<std::string> paths(const std::string& from) {
    std::vector<std::string> all;
    const auto nodes = tree().walk(from);
    if (nodes) {
      for (const Node& node : *nodes) all.push_back(node.path);
    }
    return all;
  }

 private:
  int fixed_ = 0;
};

TEST_F(TreeTest, ShowsTheHost) {
  set_host_name("web");
  EXPECT_EQ(get("host/name"), "web");
  EXPECT_EQ(get("/host/name/"), "web");
  EXPECT_EQ(get("host/pid"), std::to_string(getpid()));
  EXPECT_EQ(get("host/taint"), "R");
  EXPECT_EQ(get("host/last_unloaded"), "z(P)");
  EXPECT_EQ(get("host/poisoned"), "");
  set_host_name("");
  EXPECT_EQ(get("host/name"), program_invocation_short_name);
}

TEST_F(TreeTest, LocksForGood) {
  EXPECT_EQ(get("host/locked"), "0");
  EXPECT_EQ(set("host/locked", "0"), EINVAL);
  EXPECT_EQ(set("host/locked", "1"), 0);
  EXPECT_EQ(get("host/locked"), "1");
  EXPECT_EQ(set("host/locked", "0"), EINVAL);
}

TEST_F(TreeTest, SetsTheDelayOfReleases) {
  EXPECT_EQ(set("host/delay_release_ms", "x"), EINVAL);
  EXPECT_EQ(set("host/delay_release_ms", "-1"), EINVAL);
  EXPECT_EQ(set("host/delay_release_ms", "99999999999"), EINVAL);
  EXPECT_EQ(set("host/delay_release_ms", "5"), 0);
  EXPECT_EQ(get("host/delay_release_ms"), "5");
  EXPECT_EQ(set("host/delay_release_ms", "0"), 0);
  while (object_counts().delayed > 0) release_delayed();
}

TEST_F(TreeTest, SetsTheIntervalOfGc) {
  EXPECT_EQ(set("host/gc_interval_s", "x"), EINVAL);
  EXPECT_EQ(set("host/gc_interval_s", "86401"), EINVAL);
  EXPECT_EQ(set("host/gc_interval_s", "5"), 0);
  EXPECT_EQ(get("host/gc_interval_s"), "5");
  EXPECT_EQ(set("host/gc_interval_s", "0"), 0);
}

TEST_F(TreeTest, ModulesComeAndGo) {
  EXPECT_EQ(get("modules/a/refcnt"), "!ENOENT");
  fake::form("a", MOLT_MODULE_STATE_COMING);
  EXPECT_EQ(get("modules/a/initstate"), "coming");
  EXPECT_EQ(get("modules/a/refcnt"), "0");
  EXPECT_EQ(get("modules/a/version"), "1.0");
  EXPECT_EQ(get("modules/a/license"), "MIT");
  EXPECT_EQ(get("modules/a/coresize"), "4096");
  EXPECT_EQ(get("modules/a/initsize"), "0");
  EXPECT_EQ(get("modules/a/callbacks"), "open:0");
  EXPECT_EQ(get("modules/a/requests").substr(0, 14), "loads=1 joined");

  Ref handle = *tree().open("modules/a");
  fake::vanish("a");
  EXPECT_EQ(get("modules/a/refcnt"), "!ENOENT");
  EXPECT_EQ(code_of(get_attribute(*handle, "refcnt")), ENODEV);
  fake::form("a");
  EXPECT_EQ(code_of(get_attribute(*handle, "refcnt")), ENODEV);
  EXPECT_EQ(get("modules/a/refcnt"), "0");
}

TEST_F(TreeTest, AModuleIsEnabledInTheKernelsSpellings) {
  fake::form("a");
  EXPECT_EQ(set("modules/a/enabled", "1"), EINVAL) << "it is so already";
  for (const char* off : {"0", "n", "N", "off", "no"}) {
    EXPECT_EQ(set("modules/a/enabled", off), 0) << off;
    EXPECT_EQ(get("modules/a/enabled"), "0");
    EXPECT_EQ(set("modules/a/enabled", "on"), 0);
  }
  for (const char* bad : {"", "2", "x", "o", "true"}) {
    EXPECT_EQ(set("modules/a/enabled", bad), EINVAL) << bad;
  }
}

TEST_F(TreeTest, ShowsAndSetsParameters) {
  fake::form("a");
  EXPECT_EQ(get("modules/a/parameters/limit"), "7");
  EXPECT_EQ(set("modules/a/parameters/limit", "9"), 0);
  EXPECT_EQ(fake::last_set(), "limit=9");
  EXPECT_EQ(set("modules/a/parameters/kind", "b"), EACCES);
  EXPECT_EQ(get("modules/a/parameters/none"), "!ENOENT");
  // After a replacement they are those of the new version, though the object is the same.
  Ref handle = *tree().open("modules/a/parameters");
  fake::edit("a", [](auto& d) { d.parameters = {{"speed", "int", "3", "", false}}; });
  EXPECT_EQ(*get_attribute(*handle, "speed"), "3");
  EXPECT_EQ(get("modules/a/parameters/limit"), "!ENOENT");
}

// Nothing is said of a thing without a name, which the root is.
TEST_F(TreeTest, NamesWhatIsNotThere) {
  EXPECT_STREQ(tree().get("none").error().detail,
               "there is no none; `molt tree` shows what there is");
  EXPECT_EQ(get("/"), "!EISDIR");
  EXPECT_EQ(std::string(tree().get("/").error().detail).find("/ is an object"), std::string::npos);
}

TEST_F(TreeTest, FollowsLinksToHolders) {
  fake::form("a");
  fake::form("b");
  fake::edit("a", [](auto& d) { d.module.holders = {"b"}; });
  EXPECT_EQ(get("modules/a/holders/b/initstate"), "live");
  EXPECT_EQ(get("modules/a/holders/b/parameters/limit"), "7");
  EXPECT_EQ(get("modules/a/holders/b"), "!EISDIR");
  EXPECT_EQ(get("modules/a/holders/c"), "!ENOENT");
  const auto nodes = tree().walk("modules/a/holders/b");
  ASSERT_TRUE(nodes);
  ASSERT_EQ(nodes->size(), 1u);
  EXPECT_EQ(nodes->front().kind, Node::link);
  EXPECT_EQ(nodes->front().path, "modules/a/holders/b");
  EXPECT_EQ(nodes->front().target, "modules/b");
}

TEST_F(TreeTest, ShowsResidents) {
  fake::add_resident("a", 3, true);
  fake::add_resident("a", 4, false);
  EXPECT_EQ(get("resident/a,3/state"), "pinned");
  EXPECT_EQ(get("resident/a,3/reason"), "a thread is inside");
  EXPECT_EQ(get("resident/a,4/state"), "resident");
  EXPECT_EQ(get("resident/a,5/state"), "!ENOENT");
  Ref handle = *tree().open("resident/a,3");
  fake::remove_residents();
  EXPECT_EQ(code_of(get_attribute(*handle, "state")), ENODEV);
}

TEST_F(TreeTest, ShowsHooks) {
  fake::add_hook("open");
  fake::add_hook("net/recv");
  EXPECT_EQ(get("hooks/open/rule"), "first");
  EXPECT_EQ(get("hooks/open/callbacks"), "early:-1,late:0");
  EXPECT_EQ(get("hooks/open/order"), "");
  EXPECT_EQ(set("hooks/open/order", "b,,a"), 0);
  EXPECT_EQ(get("hooks/open/order"), "b,a");
  EXPECT_EQ(set("hooks/open/order", ""), 0);
  EXPECT_EQ(get("hooks/open/order"), "");
  EXPECT_EQ(get("hooks/net!recv/signature"), "int(const char*)");
  EXPECT_EQ(get("hooks/close/rule"), "!ENOENT");
}

TEST_F(TreeTest, AHandleToAHookThatWentStaysDead) {
  fake::add_hook("open");
  Ref handle = *tree().open("hooks/open");
  EXPECT_EQ(*get_attribute(*handle, "rule"), "first");
  fake::remove_hook("open");
  EXPECT_EQ(code_of(get_attribute(*handle, "rule")), ENODEV);
  fake::add_hook("open");
  EXPECT_EQ(code_of(get_attribute(*handle, "rule")), ENODEV);
}

TEST_F(TreeTest, WalksParentsFirst) {
  fake::form("a");
  fake::form("a-b");
  fake::edit("a", [](auto& d) { d.module.holders = {"a-b"}; });
  fake::add_hook("net/recv");
  fake::add_resident("r", 1, false);
  const std::vector<std::string> all = paths("");
  const auto place = [&](const std::string& path) {
    const auto at = std::find(all.begin(), all.end(), path);
    EXPECT_NE(at, all.end()) << path;
    return at - all.begin();
  };
  EXPECT_LT(place("modules"), place("modules/a"));
  EXPECT_LT(place("modules/a/refcnt"), place("modules/a/holders"));
  EXPECT_LT(place("modules/a/holders"), place("modules/a/holders/a-b"));
  EXPECT_LT(place("modules/a/holders/a-b"), place("modules/a/parameters"));
  EXPECT_LT(place("modules/a/parameters/limit"), place("modules/a-b"));
  EXPECT_LT(place("hooks"), place("hooks/net!recv/rule"));
  EXPECT_LT(place("resident"), place("resident/r,1/reason"));

  EXPECT_EQ(paths("modules/a/parameters"),
            (std::vector<std::string>{"modules/a/parameters", "modules/a/parameters/limit",
                                      "modules/a/parameters/kind"}));
  EXPECT_EQ(paths("host/name"), std::vector<std::string>{"host/name"});
  EXPECT_EQ(paths("hooks/net!recv").size(), 6u);
  EXPECT_EQ(code_of(tree().walk("nowhere")), ENOENT);
  EXPECT_EQ(code_of(tree().walk("host/nothing")), ENOENT);
}

TEST_F(TreeTest, SurvivesStrangePaths) {
  for (const char* path : {"", "/", "//", "host", "host//", "..", "host/..", "modules/../host/pid",
                           "host/name/x", "host/name/x/y", "hooks/!", "hooks/!/x", "resident/,"}) {
    EXPECT_EQ(get(path)[0], '!') << path;
    EXPECT_NE(set(path, "1"), 0) << path;
  }
}

TEST_F(TreeTest, SeesModulesThatWereThereBefore) {
  module::set_observer(nullptr);
  fake::form("old");
  fake::form("leaving", MOLT_MODULE_STATE_GOING);
  module::set_observer(&tree_observer());
  forget_tree();
  EXPECT_EQ(get("modules/old/refcnt"), "0");
  EXPECT_EQ(get("modules/leaving/refcnt"), "!ENOENT");
  // What TearDown compares with was counted in a tree that is left to itself now.
  fake::reset();
  forget_objects();
  forget_tree();
  static_cast<void>(tree());
}

}  // namespace
