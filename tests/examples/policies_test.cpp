// The example modules in a host that has the file server's hooks, but no server.
#include "http_files/hooks.hpp"

#include <molt/host.hpp>

#include <fcntl.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <string>
#include <thread>
#include <vector>

namespace {

molt::hook<http_files::request_point> on_request;
molt::hook<http_files::answer_point> on_answer;
molt::hook<http_files::open_point> on_open;
molt::hook<http_files::counters_point> on_counters;

std::string built(const std::string& file) {
  const char* lib = std::getenv("MOLT_LIB");
  return std::string(lib ? lib : "build/lib") + "/molt/" + file + ".so";
}
std::string example(const std::string& file) { return built("examples/" + file); }

// Loaded for the length of a test.
class Loaded {
 public:
  explicit Loaded(const char* name, const std::string& file, const char* args = nullptr)
      : name_(name) {
    EXPECT_EQ(molt_load(file.c_str(), args, 0, -1), 0) << molt_last_error();
  }
  ~Loaded() {
    EXPECT_EQ(molt_unload(name_, 0, -1), 0) << molt_last_error();
    EXPECT_EQ(std::string(molt_last_error()).find("pinned"), std::string::npos)
        << molt_last_error();
  }
  Loaded(const Loaded&) = delete;
  Loaded& operator=(const Loaded&) = delete;

 private:
  const char* name_;
};

constexpr int reading = O_RDONLY;
constexpr int creating = O_WRONLY | O_CREAT | O_TRUNC;
constexpr int creating_new = O_WRONLY | O_CREAT | O_EXCL;

int open_as(const char* path, int flags) { return on_open(path, flags, "127.0.0.1"); }

// limit_names -------------------------------------------------------------------------------------

TEST(LimitNames, AllowsEverythingByDefault) {
  Loaded module("limit_names", example("limit_names"));
  EXPECT_EQ(open_as("/a", reading), 0);
  EXPECT_EQ(open_as("/a.key", creating), 0);
}

TEST(LimitNames, DenyHoldsForEveryPatternOfTheList) {
  Loaded module("limit_names", example("limit_names"), "deny=*.key,/private/*,/x?");
  EXPECT_EQ(open_as("/deep/down/server.key", reading), -EACCES);
  EXPECT_EQ(open_as("/server.key", creating_new), -EACCES);
  EXPECT_EQ(open_as("/private/a", reading), -EACCES);
  EXPECT_EQ(open_as("/private/a/b", reading), -EACCES);
  EXPECT_EQ(open_as("/x1", reading), -EACCES);
  EXPECT_EQ(open_as("/x12", reading), 0);
  EXPECT_EQ(open_as("/server.keys", reading), 0);
  EXPECT_EQ(open_as("/private", reading), 0);
}

TEST(LimitNames, WhatIsNotAllowedIsRefusedAndDenyWins) {
  Loaded module("limit_names", example("limit_names"), "allow=/pub/*,/in/* deny=/pub/secret");
  EXPECT_EQ(open_as("/pub/a", reading), 0);
  EXPECT_EQ(open_as("/in/a", creating), 0);
  EXPECT_EQ(open_as("/etc/a", reading), -EACCES);
  EXPECT_EQ(open_as("/pub/secret", reading), -EACCES);
}

TEST(LimitNames, CreateLimitsCreatingOnly) {
  Loaded module("limit_names", example("limit_names"), "create=/in/*.txt");
  EXPECT_EQ(open_as("/in/a.txt", creating), 0);
  EXPECT_EQ(open_as("/in/a.exe", creating), -EACCES);
  EXPECT_EQ(open_as("/in/a.exe", creating_new), -EACCES);
  EXPECT_EQ(open_as("/in/a.exe", reading), 0);
}

TEST(LimitNames, AnEmptyAllowListAllowsNothing) {
  Loaded module("limit_names", example("limit_names"), "allow=");
  EXPECT_EQ(open_as("/a", reading), -EACCES);
}

// temp_files --------------------------------------------------------------------------------------

TEST(TempFiles, RefusesPredictableNamesInSharedFolders) {
  Loaded module("temp_files", example("temp_files"), "mode=refuse");
  for (const char* path :
       {"/tmp/report.txt", "/tmp/deep/report.txt", "/var/tmp/x", "/dev/shm/lock", "/tmp/job.4711",
        "/tmp/20241231.log", "/tmp/REPORT2024", "/tmp/a1B.c2D"}) {
    EXPECT_EQ(open_as(path, creating), -EACCES) << path;
  }
}

TEST(TempFiles, AcceptsWhatIsNotAMistake) {
  Loaded module("temp_files", example("temp_files"), "mode=refuse");
  // Not in a shared folder; the name of one is not enough.
  for (const char* path : {"/home/report.txt", "/tmpfiles/report.txt", "/tmp", "/a/tmp/b"}) {
    EXPECT_EQ(open_as(path, creating), 0) << path;
  }
  // Random names, as mkstemp and others make them.
  for (const char* path : {"/tmp/job.aZ3kQ9", "/tmp/7fG2hJ", "/tmp/tmpa1b2c3d4.txt"}) {
    EXPECT_EQ(open_as(path, creating), 0) << path;
  }
  EXPECT_EQ(open_as("/tmp/report.txt", creating_new), 0) << "O_EXCL finds out by itself";
  EXPECT_EQ(open_as("/tmp/report.txt", reading), 0) << "nothing is created";
  EXPECT_EQ(open_as("/tmp", O_RDWR | O_TMPFILE), 0) << "no name, no mistake";
}

TEST(TempFiles, OnlyLogsByDefault) {
  Loaded module("temp_files", example("temp_files"));
  EXPECT_EQ(open_as("/tmp/report.txt", creating), 0);
}

TEST(TempFiles, OtherFolders) {
  Loaded module("temp_files", example("temp_files"), "mode=refuse directories=/spool:/scratch:");
  EXPECT_EQ(open_as("/scratch/a", creating), -EACCES);
  EXPECT_EQ(open_as("/spool/a", creating), -EACCES);
  EXPECT_EQ(open_as("/tmp/a", creating), 0);
}

TEST(TempFiles, RefusesAModeThatItDoesNotKnow) {
  EXPECT_EQ(molt_load(example("temp_files").c_str(), "mode=refus", 0, -1), -EINVAL);
}

TEST(Stacked, BothPoliciesHold) {
  Loaded names("limit_names", example("limit_names"), "deny=*.key");
  Loaded temporary("temp_files", example("temp_files"), "mode=refuse");
  EXPECT_EQ(open_as("/a.key", reading), -EACCES);
  EXPECT_EQ(open_as("/tmp/a", creating), -EACCES);
  EXPECT_EQ(open_as("/a", creating), 0);

  ASSERT_EQ(molt_disable("limit_names"), 0) << molt_last_error();
  EXPECT_EQ(open_as("/a.key", reading), 0);
  EXPECT_EQ(open_as("/tmp/a", creating), -EACCES);
  ASSERT_EQ(molt_enable("limit_names"), 0) << molt_last_error();
  EXPECT_EQ(open_as("/a.key", reading), -EACCES);
}

// client_count ------------------------------------------------------------------------------------

struct Tally {
  std::uint64_t requests = 0, bytes = 0;
  bool operator==(const Tally&) const = default;
};
using Counters = std::map<std::string, Tally>;

std::ostream& operator<<(std::ostream& out, const Tally& t) {
  return out << t.requests << " requests, " << t.bytes << " bytes";
}

Counters read_counters() {
  Counters all;
  http_files::CounterSink sink = {
      [](void* context, const char* client, std::uint64_t requests, std::uint64_t bytes) {
        (*static_cast<Counters*>(context))[client] = {requests, bytes};
      },
      &all};
  EXPECT_TRUE(on_counters(sink)) << "no module keeps counters";
  return all;
}

void serve(const char* client, std::uint64_t bytes) {
  on_request(client, "GET", "/a");
  on_answer(client, 200, bytes);
}

int replace_by(const std::string& file) {
  return molt_replace("client_count", file.c_str(), nullptr, 0, -1);
}

TEST(ClientCount, Version1CountsRequests) {
  Loaded module("client_count", example("client_count_v1"));
  serve("a", 10);
  serve("a", 10);
  serve("b", 10);
  EXPECT_EQ(read_counters(), (Counters{{"a", {2, 0}}, {"b", {1, 0}}}));
}

TEST(ClientCount, Version2GoesOnFromVersion1AndCountsBytes) {
  Loaded module("client_count", example("client_count_v1"));
  serve("a", 10);
  serve("b", 10);
  on_request("a", "GET", "/answered-by-version-2");
  ASSERT_EQ(replace_by(example("client_count_v2")), 0) << molt_last_error();
  on_answer("a", 200, 5);
  serve("a", 7);
  serve("c", 1);
  EXPECT_EQ(read_counters(), (Counters{{"a", {3, 12}}, {"b", {1, 0}}, {"c", {1, 1}}}));
}

TEST(ClientCount, Version2GoesOnFromItsOwnState) {
  Loaded module("client_count", example("client_count_v2"));
  serve("a", 10);
  ASSERT_EQ(replace_by(example("client_count_v2_1")), 0) << molt_last_error();
  serve("a", 1);
  ASSERT_EQ(replace_by(example("client_count_v2")), 0) << molt_last_error();
  serve("a", 1);
  EXPECT_EQ(read_counters(), (Counters{{"a", {3, 12}}}));
}

TEST(ClientCount, Version1RefusesVersion2sStateAndVersion2GoesOn) {
  Loaded module("client_count", example("client_count_v2"));
  serve("a", 10);
  EXPECT_LT(replace_by(example("client_count_v1")), 0);
  EXPECT_NE(std::string(molt_last_error()).find("state"), std::string::npos) << molt_last_error();
  serve("a", 1);
  EXPECT_EQ(read_counters(), (Counters{{"a", {2, 11}}}));
}

TEST(ClientCount, ATruncatedStateIsRefusedAndTheOldOneGoesOn) {
  Loaded module("client_count", built("tests/client_count_truncated"));
  EXPECT_EQ(replace_by(example("client_count_v2")), -EINVAL) << molt_last_error();
  EXPECT_EQ(read_counters(), (Counters{{"misfit", {7, 0}}}));
  EXPECT_EQ(replace_by(example("client_count_v1")), -EINVAL) << molt_last_error();
  EXPECT_EQ(read_counters(), (Counters{{"misfit", {7, 0}}}));
}

TEST(ClientCount, AStateNewerThanItselfIsRefused) {
  Loaded module("client_count", built("tests/client_count_newer"));
  EXPECT_LT(replace_by(example("client_count_v2")), 0);
  EXPECT_NE(std::string(molt_last_error()).find("state"), std::string::npos) << molt_last_error();
  EXPECT_EQ(read_counters(), (Counters{{"misfit", {7, 0}}}));
}

TEST(ClientCount, EveryRequestCountsOnceWhileVersionsChange) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "a thread of the thread sanitizer is not proven to be out while it runs: each "
                  "replacement takes its whole time";
#endif
  Loaded module("client_count", example("client_count_v1"));
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  std::vector<std::uint64_t> served(4);
  for (std::size_t i = 0; i < served.size(); ++i) {
    threads.emplace_back([&, i] {
      const char* client = i % 2 == 0 ? "even" : "odd";
      while (!stop.load(std::memory_order_relaxed)) {
        serve(client, 1);
        ++served[i];
      }
    });
  }
  for (int round = 0; round < 20; ++round) {
    EXPECT_EQ(replace_by(example("client_count_v2")), 0) << molt_last_error();
    EXPECT_EQ(replace_by(example("client_count_v2_1")), 0) << molt_last_error();
    EXPECT_LT(replace_by(example("client_count_v1")), 0);
  }
  stop.store(true, std::memory_order_relaxed);
  for (auto& thread : threads) thread.join();
  Counters all = read_counters();
  EXPECT_EQ(all["even"].requests, served[0] + served[2]);
  EXPECT_EQ(all["odd"].requests, served[1] + served[3]);
}

}  // namespace
