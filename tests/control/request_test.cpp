// From a request's bytes to its reply: what is refused, and every method.
#include "control/request.hpp"

#include <gtest/gtest.h>
#include <molt/molt.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

#include "client.hpp"
#include "control/content.hpp"
#include "control/errors.hpp"
#include "fake.hpp"

using namespace molt;
using namespace molt::control;
using test::error_class;
using test::error_code;
using test::field;
using test::text;

namespace {

Fd file_with(const std::string& content) {
  Fd fd(memfd_create("test", MFD_CLOEXEC));
  EXPECT_EQ(write(fd.get(), content.data(), content.size()), static_cast<ssize_t>(content.size()));
  return fd;
}

int read_code(const std::string& message) {
  const auto call = Call::read(message);
  return call ? 0 : call.error().code;
}

class RequestTest : public testing::Test {
 protected:
  void SetUp() override {
    fake::reset();
    forget_tree();
    module::set_observer(&tree_observer());
  }
  void TearDown() override {
    fake::reset();
    module::set_observer(nullptr);
  }

  Json ask(std::string_view method, const Json& parameters = Json::object(), int fd = -1) {
    Json request = Json::object();
    request["method"] = method;
    request["parameters"] = parameters;
    const auto call = Call::read(to_text(request));
    if (!call) return Json::parse(error_reply({call.error(), wire::ErrorClass::usage}));
    return Json::parse(call->run({{1, 2, "tester"}, fd, &cancelled_, &session_}));
  }

  std::atomic<bool> cancelled_{false};
  Session session_;
};

TEST_F(RequestTest, RefusesWhatIsNoObject) {
  std::string deep = R"({"method":"molt.List","parameters":)";
  for (int i = 0; i < 100'000; ++i) deep += "[";
  std::string wide = R"({"method":"molt.List","parameters":{)";
  for (int i = 0; i < 1000; ++i) wide += '"' + std::to_string(i) + "\":1,";
  wide += "\"x\":1}}";
  for (const std::string& bad :
       {std::string(), std::string("x"), std::string("[]"), std::string("1"), std::string("null"),
        std::string("{"), std::string(R"({"method":"molt.List"}})"), std::string("{\"\xff\":1}"),
        std::string(R"({"method":"molt.List","parameters":{"a":1e999999}})"), deep, wide,
        std::string(100'000, '{'), std::string(R"({"a":)") + std::string(100, '{')}) {
    EXPECT_EQ(read_code(bad), EBADMSG) << bad.substr(0, 60);
  }
}

TEST_F(RequestTest, RefusesWhatIsNoRequest) {
  EXPECT_EQ(read_code("{}"), EINVAL);
  EXPECT_EQ(read_code(R"({"method":1})"), EINVAL);
  EXPECT_EQ(read_code(R"({"method":"molt.List","parameters":[]})"), EINVAL);
  EXPECT_EQ(read_code(R"({"method":"molt.List","more":true})"), EINVAL);
  EXPECT_EQ(read_code(R"({"method":"molt.list"})"), ENOSYS);
  EXPECT_EQ(read_code(R"({"method":"molt.List"})"), 0);
  // Brackets within texts are no depth.
  EXPECT_EQ(read_code(R"({"method":"molt.Get","parameters":{"path":"[[[[[[[[[[[[[[[[[[[[\"{{"}})"),
            0);
}

TEST_F(RequestTest, RefusesUnknownAndMissingAndMistypedParameters) {
  const auto refused = [&](std::string_view method, const Json& parameters) {
    const Json reply = ask(method, parameters);
    return error_code(reply) == EINVAL && error_class(reply) == "usage";
  };
  EXPECT_TRUE(refused("molt.List", {{"verbose", true}}));
  EXPECT_TRUE(refused("molt.Unload", Json::object()));
  EXPECT_TRUE(refused("molt.Unload", {{"name", 1}}));
  EXPECT_TRUE(refused("molt.Unload", {{"name", nullptr}}));
  EXPECT_TRUE(refused("molt.Unload", {{"name", std::string("a\0b", 3)}}));
  EXPECT_TRUE(refused("molt.Unload", {{"name", "a"}, {"resident", 1}}));
  EXPECT_TRUE(refused("molt.Unload", {{"name", "a"}, {"timeout_ms", -2}}));
  EXPECT_TRUE(refused("molt.Unload", {{"name", "a"}, {"timeout_ms", 1e3}}));
  EXPECT_TRUE(refused("molt.Unload", {{"name", "a"}, {"timeout_ms", std::uint64_t{1} << 63}}));
  EXPECT_TRUE(refused("molt.Unload", {{"name", "a"}, {"timeout_ms", 1LL << 40}}));
  EXPECT_TRUE(refused("molt.Unload", {{"name", "a"}, {"dryrun", true}}));
  EXPECT_TRUE(refused("molt.HookOrder", Json::object()));
  EXPECT_TRUE(refused("molt.HookOrder", {{"modules", "a,b"}}));
  EXPECT_TRUE(refused("molt.HookOrder", {{"modules", {1}}}));
  EXPECT_TRUE(refused("molt.HookOrder", {{"hook", ""}, {"modules", nullptr}}));
  EXPECT_TRUE(refused("molt.Wait", {{"name", "a"}, {"for", "ever"}}));
  EXPECT_TRUE(refused("molt.Wait", {{"for", "gone"}}));
  EXPECT_TRUE(refused("molt.Events", {{"since", -1}}));
  EXPECT_TRUE(refused("molt.Events", {{"more", 1}}));
  EXPECT_EQ(error_code(ask("molt.Load", {{"path", "x"}})), EBADF) << "no file";
}

TEST_F(RequestTest, TellsOfTheProcess) {
  const Json reply = ask("molt.GetInfo");
  EXPECT_EQ(field(reply, "schema"), 1);
  EXPECT_EQ(field(reply, "pid"), getpid());
  EXPECT_EQ(field(reply, "abi"), MOLT_ABI);
  EXPECT_EQ(field(reply, "taint"), "R");
  EXPECT_EQ(field(reply, "locked"), false);
  EXPECT_EQ(text(reply, "version"), MOLT_VERSION);
  EXPECT_GT(field(reply, "threads"), 0);
  EXPECT_NE(text(reply, "exe").find("control"), std::string::npos);
  const std::int64_t started_ms = *field(reply, "started_ms").get_ptr<const std::int64_t*>();
  const std::int64_t unix_ms = time(nullptr) * 1000LL;
  EXPECT_LT(started_ms, unix_ms + 2000);
  EXPECT_GT(started_ms, unix_ms - 3'600'000);
}

TEST_F(RequestTest, ServesInfoOfAPoisonedAndLockedProcess) {
  fake::poison("an impossible state");
  module::lock_loading();
  const Json reply = ask("molt.GetInfo");
  EXPECT_EQ(text(reply, "poisoned"), "an impossible state");
  EXPECT_EQ(field(reply, "locked"), true);
}

TEST_F(RequestTest, LoadsAndSaysWhenItWasThere) {
  const Fd file = file_with("name=a version=1");
  Json reply = ask("molt.Load", {{"path", "/x/a.so"}}, file.get());
  EXPECT_EQ(error_code(reply), 0) << reply.dump();
  EXPECT_EQ(text(reply, "name"), "a");
  EXPECT_EQ(field(reply, "already"), false);
  reply = ask("molt.Load", {{"path", "/y/a.so"}}, file_with("name=a version=1").get());
  EXPECT_EQ(error_code(reply), 0);
  EXPECT_EQ(field(reply, "already"), true);
  reply = ask("molt.Load", {{"path", "/x/a.so"}}, file_with("name=a version=2").get());
  EXPECT_EQ(error_code(reply), EEXIST);
  EXPECT_EQ(error_class(reply), "failed");
  EXPECT_EQ(text(reply, "errno"), "EEXIST");
}

TEST_F(RequestTest, PutsFailuresOfLoadsIntoClasses) {
  const auto kind = [&](const std::string& content) {
    return error_class(ask("molt.Load", {{"path", "x"}}, file_with(content).get()));
  };
  const auto failing = [](int code, const char* site = "load") {
    return "name=a fail=" + std::to_string(code) + " site=" + site;
  };
  EXPECT_EQ(kind("no module"), "refused");
  EXPECT_EQ(kind(failing(ENOENT)), "refused") << "an unknown symbol";
  EXPECT_EQ(kind(failing(EINVAL)), "refused");
  EXPECT_EQ(kind(failing(ENOMEM)), "failed");
  EXPECT_EQ(kind(failing(EBUSY)), "failed");
  EXPECT_EQ(kind(failing(ETIMEDOUT)), "stalled");
  EXPECT_EQ(kind(failing(EACCES)), "failed") << "not Molt's refusal";
  for (const int code : {ENOENT, EINVAL, EACCES, EPERM, ETIMEDOUT, ENOEXEC}) {
    EXPECT_EQ(kind(failing(code, "run_init")), "failed") << "init may answer anything";
  }
  module::lock_loading();
  EXPECT_EQ(kind("name=a"), "permission");
}

TEST_F(RequestTest, UnloadsAndReplaces) {
  EXPECT_EQ(error_class(ask("molt.Unload", {{"name", "a"}})), "missing");
  fake::form("a");
  Json reply = ask("molt.Replace", {{"path", "a.so"}}, file_with("name=a version=2").get());
  EXPECT_EQ(text(reply, "from"), "1.0");
  EXPECT_EQ(text(reply, "to"), "2");
  EXPECT_EQ(text(reply, "old"), "unmapped");
  reply = ask("molt.Replace", {{"path", "b.so"}}, file_with("name=b version=2").get());
  EXPECT_EQ(error_class(reply), "missing") << "nothing to replace";
  reply = ask("molt.Replace", {{"path", "a.so"}}, file_with("name=a fail=2").get());
  EXPECT_EQ(error_class(reply), "refused") << "a symbol is unknown";
  reply = ask("molt.Unload", {{"name", "a"}});
  EXPECT_EQ(text(reply, "result"), "unmapped");
  EXPECT_EQ(field(reply, "drain_us"), 12);
}

TEST_F(RequestTest, ListsAndInforms) {
  fake::form("a");
  fake::add_resident("b", 1, true);
  const Json reply = ask("molt.List");
  const Json modules = field(reply, "modules");
  ASSERT_EQ(modules.size(), 1u);
  EXPECT_EQ(modules[0]["name"], "a");
  EXPECT_EQ(modules[0]["state"], "live");
  EXPECT_EQ(modules[0]["address"], "0x00007f0000001000");
  EXPECT_EQ(field(reply, "resident")[0]["state"], "pinned");

  const Json info = ask("molt.Info", {{"name", "a"}});
  EXPECT_EQ(field(info, "parameters")[0]["value"], "7");
  EXPECT_EQ(field(info, "callbacks")[0]["hook"], "open");
  EXPECT_EQ(field(info, "requests")["loads"], 1);
  EXPECT_EQ(error_class(ask("molt.Info", {{"name", "b"}})), "missing");
}

TEST_F(RequestTest, ShowsAndOrdersHooks) {
  fake::add_hook("open");
  fake::add_hook("close");
  Json reply = ask("molt.HookOrder", {{"hook", "open"}, {"modules", {"b", "a"}}});
  EXPECT_EQ(field(reply, "order"), Json::array({"b", "a"}));
  reply = ask("molt.HookList");
  EXPECT_EQ(field(reply, "hooks")[0]["order"], Json::array({"b", "a"}));
  EXPECT_EQ(field(reply, "hooks")[0]["fingerprint"], "0xfedcba9876543210");
  EXPECT_TRUE(field(reply, "hooks")[1]["order"].is_null());
  EXPECT_EQ(error_code(ask("molt.HookOrder", {{"modules", nullptr}})), 0) << "all hooks";
  EXPECT_TRUE(field(ask("molt.HookList"), "hooks")[0]["order"].is_null());
  EXPECT_EQ(error_class(ask("molt.HookOrder", {{"hook", "x"}, {"modules", nullptr}})), "missing");
}

TEST_F(RequestTest, GetsAndSets) {
  fake::form("a");
  EXPECT_EQ(text(ask("molt.Get", {{"path", "modules/a/parameters/limit"}}), "value"), "7");
  EXPECT_EQ(error_code(ask("molt.Set", {{"path", "modules/a/parameters/limit"}, {"value", "8"}})),
            0);
  EXPECT_EQ(fake::last_set(), "limit=8");
  EXPECT_EQ(error_class(ask("molt.Get", {{"path", "modules/b/refcnt"}})), "missing");
  EXPECT_EQ(error_class(ask("molt.Get", {{"path", "modules/a"}})), "usage");
  EXPECT_EQ(error_class(ask("molt.Set", {{"path", "modules/a/refcnt"}, {"value", "8"}})),
            "permission");
  const Json reply =
      ask("molt.Set", {{"path", "modules/a/parameters/limit"}, {"value", "refused"}});
  EXPECT_EQ(error_code(reply), EACCES);
  EXPECT_EQ(error_class(reply), "failed") << "the module's own refusal";

  const Json nodes = field(ask("molt.Tree", {{"path", "modules/a"}}), "nodes");
  EXPECT_EQ(nodes[0]["kind"], "object");
  EXPECT_EQ(nodes[1]["path"], "modules/a/initstate");
  EXPECT_EQ(nodes[1]["mode"], "0444");
  EXPECT_EQ(nodes[1]["value"], "live");
}

TEST_F(RequestTest, HandlesDieWithTheirObject) {
  fake::form("a");
  const Json handle = field(ask("molt.Open", {{"path", "modules/a"}}), "handle");
  const Json request = {{"handle", handle}, {"name", "refcnt"}};
  EXPECT_EQ(text(ask("molt.GetAttribute", request), "value"), "0");
  fake::vanish("a");
  Json reply = ask("molt.GetAttribute", request);
  EXPECT_EQ(error_code(reply), ENODEV);
  EXPECT_EQ(error_class(reply), "missing");
  EXPECT_EQ(error_code(ask("molt.Close", {{"handle", handle}})), 0);
  EXPECT_EQ(error_code(ask("molt.Close", {{"handle", handle}})), EBADF);
  EXPECT_EQ(error_code(ask("molt.GetAttribute", request)), EBADF);
  EXPECT_EQ(error_class(ask("molt.Open", {{"path", "modules/a"}})), "missing");
  for (std::size_t i = 0; i < Session::handles_max; ++i) {
    ASSERT_EQ(error_code(ask("molt.Open", {{"path", "host"}})), 0);
  }
  EXPECT_EQ(error_code(ask("molt.Open", {{"path", "host"}})), EMFILE);
}

TEST_F(RequestTest, Waits) {
  EXPECT_EQ(error_class(ask("molt.Wait", {{"name", "a"}, {"timeout_ms", 1}})), "stalled");
  fake::form("a");
  EXPECT_GE(field(ask("molt.Wait", {{"name", "a"}}), "waited_ms"), 0);
  EXPECT_EQ(error_code(ask("molt.Wait")), 0);
  cancelled_.store(true, std::memory_order_relaxed);
  EXPECT_EQ(error_code(ask("molt.Wait", {{"name", "a"}, {"for", "gone"}})), ECANCELED);
}

TEST_F(RequestTest, BlockingTellsWhoIsInside) {
  EXPECT_EQ(error_class(ask("molt.Blocking", {{"name", "a"}})), "missing");
  EXPECT_EQ(field(ask("molt.Blocking"), "holders").size(), 0u);
  EXPECT_EQ(field(ask("molt.Blocking"), "transition"), nullptr);
  fake::form("a");
  const Json reply = ask("molt.Blocking", {{"name", "a"}});
  ASSERT_EQ(field(reply, "holders").size(), 2u) << reply.dump();
  const Json thread = field(reply, "holders")[0];
  EXPECT_EQ(thread["tid"], 4711);
  EXPECT_EQ(thread["function"], "on_tick+0x10");
  EXPECT_EQ(thread["stack_address"], "0x0000000000005678");
  EXPECT_EQ(thread["certain"], false);
  EXPECT_EQ(thread["syscall"], "futex");
  const Json references = field(reply, "holders")[1];
  EXPECT_EQ(references["where"], "2 held by others");
  EXPECT_FALSE(references.contains("tid"));
  EXPECT_FALSE(references.contains("address"));
}

TEST_F(RequestTest, LoansAreAskedFor) {
  const Json reply = ask("molt.Lend");
  EXPECT_EQ(field(reply, "taken"), 2);
  EXPECT_EQ(field(reply, "missing"), Json::array({4711}));
  EXPECT_EQ(field(reply, "desk"), "molt-loans/fake");
  EXPECT_EQ(error_code(ask("molt.Lend", {{"tid", 1}})), EINVAL);
}

TEST_F(RequestTest, TestimonyIsTakenApart) {
  const Json good = {{"tid", 4711},    {"serial", 7},    {"runs", 3},
                     {"from", "0x10"}, {"to", "0x2000"}, {"slots", Json::array({"0x18", "0x40"})}};
  EXPECT_EQ(error_code(ask("molt.Testify", good)), 0);
  for (const char* missing : {"tid", "serial", "runs", "from", "to", "slots"}) {
    Json bad = good;
    bad.erase(missing);
    EXPECT_EQ(error_code(ask("molt.Testify", bad)), EINVAL) << missing;
  }
  for (const char* address : {"", "0x", "-1", "0x1g", "0x11112222333344445"}) {
    Json bad = good;
    bad["to"] = address;
    EXPECT_EQ(error_code(ask("molt.Testify", bad)), EINVAL) << address;
    bad = good;
    bad["slots"].push_back(address);
    EXPECT_EQ(error_code(ask("molt.Testify", bad)), EINVAL) << address;
  }
}

TEST_F(RequestTest, BlockingTellsWhoHoldsATransitionUp) {
  fake::form("fix");
  fake::add_patch("fix", true);
  for (const Json& arguments : {Json::object(), Json{{"name", "fix"}}}) {
    const Json reply = ask("molt.Blocking", arguments);
    EXPECT_EQ(field(reply, "name"), "fix");
    EXPECT_EQ(field(reply, "state"), "patching");
    EXPECT_EQ(field(reply, "transition")["left"], 1);
    ASSERT_EQ(field(reply, "holders").size(), 1u) << reply.dump();
    const Json thread = field(reply, "holders")[0];
    EXPECT_EQ(thread["tid"], 4712);
    EXPECT_EQ(thread["where"], "may return into parse");
    EXPECT_EQ(thread["stack_address"], "0x0000000000008765");
    EXPECT_EQ(thread["asleep_ms"], 30);
  }
}

TEST_F(RequestTest, BlockingNamesAPatchThatIsInForce) {
  fake::form("fix");
  fake::add_patch("fix", false);
  const Json reply = ask("molt.Blocking", {{"name", "fix"}});
  EXPECT_EQ(field(reply, "transition"), nullptr);
  ASSERT_GE(field(reply, "holders").size(), 1u) << reply.dump();
  EXPECT_EQ(field(reply, "holders")[0]["what"], "its patch");
}

TEST_F(RequestTest, AuditTellsWhereThePointersAre) {
  EXPECT_EQ(error_class(ask("molt.Audit", {{"name", "a"}})), "missing");
  fake::form("a");
  const Json reply = ask("molt.Audit", {{"name", "a"}});
  ASSERT_EQ(field(reply, "pointers").size(), 1u) << reply.dump();
  const Json pointer = field(reply, "pointers")[0];
  EXPECT_EQ(pointer["place"], "heap");
  EXPECT_EQ(pointer["looks"], "callback");
  EXPECT_EQ(pointer["address"], "0x0000000000001234");
  EXPECT_EQ(pointer["target"], "on_timer+0x0");
  EXPECT_EQ(pointer["bars"], true);
  EXPECT_EQ(field(reply, "stable"), true);
  EXPECT_EQ(field(reply, "method"), "rescan");
}

TEST_F(RequestTest, CollectsGarbage) {
  fake::add_resident("kept", 1, true);
  fake::add_resident("freed", 2, false);
  const Json reply = ask("molt.Gc", {{"dry_run", true}});
  EXPECT_EQ(field(reply, "freed"), Json::array({"freed"}));
  EXPECT_EQ(field(reply, "kept")[0]["reason"], "a thread is inside");
}

TEST_F(RequestTest, ReadsEvents) {
  log::line("a", "one\xff line");
  const Json all = ask("molt.Events");
  const Json next = field(all, "next");
  ASSERT_FALSE(field(all, "events").empty());
  const Json last = field(all, "events").back();
  EXPECT_EQ(last["module"], "a");
  EXPECT_EQ(last["text"], "a: one\xef\xbf\xbd line") << "invalid UTF-8 is replaced";
  EXPECT_TRUE(field(ask("molt.Events", {{"since", next}}), "events").empty());
  const EventsReply some = events_reply(0, 1);
  EXPECT_TRUE(some.has_more);
  EXPECT_FALSE(some.is_empty);
}

TEST_F(RequestTest, KnowsWhatIsSlow) {
  for (const char* quick : {"GetInfo", "List", "HookList", "Open", "Close", "Events"}) {
    EXPECT_FALSE(Call::read(std::string(R"({"method":"molt.)") + quick + "\"}")->is_slow())
        << quick;
  }
  for (const char* slow : {"Load", "Unload", "Replace", "Info", "HookOrder", "Get", "Set", "Tree",
                           "GetAttribute", "Gc", "Wait"}) {
    EXPECT_TRUE(Call::read(std::string(R"({"method":"molt.)") + slow + "\"}")->is_slow()) << slow;
  }
  EXPECT_TRUE(Call::read(R"({"method":"molt.Events","parameters":{"more":true}})")->is_stream());
  EXPECT_FALSE(Call::read(R"({"method":"molt.Events"})")->is_stream());
}

}  // namespace
