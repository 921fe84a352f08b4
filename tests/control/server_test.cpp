// Clients that behave well.
#include "control/server.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <thread>

#include "base/directory.hpp"
#include "control/control.hpp"
#include "control/object.hpp"
#include "fake.hpp"
#include "running.hpp"

using namespace molt;
using test::Client;
using test::error_class;
using test::error_code;
using test::eventually;
using test::field;
using test::file_with;
using test::Json;
using test::text;

namespace {

class ServerTest : public test::Running {};

struct Gate {
  std::atomic<bool> is_open{false};
  std::atomic<int> inside{0};
  void pass() {
    inside.fetch_add(1, std::memory_order_acq_rel);
    while (!is_open.load(std::memory_order_acquire)) sched_yield();
    inside.fetch_sub(1, std::memory_order_acq_rel);
  }
  bool holds(int n) { return inside.load(std::memory_order_acquire) == n; }
  void open() { is_open.store(true, std::memory_order_release); }
};

TEST_F(ServerTest, Answers) {
  start();
  Client client = connect();
  ASSERT_TRUE(client.is_connected());
  EXPECT_EQ(text(client.ask("molt.GetInfo"), "name"), "tester");
  EXPECT_EQ(error_code(client.ask("molt.List")), 0);
  EXPECT_EQ(error_code(client.ask("molt.Get", {{"path", "host/pid"}})), 0);
  EXPECT_EQ(error_code(client.ask("molt.Nonsense")), ENOSYS);
  EXPECT_EQ(error_code(client.ask("molt.List")), 0) << "the connection outlives a refused request";
}

TEST_F(ServerTest, HasAPrivateSocket) {
  start();
  struct stat info {};
  ASSERT_EQ(stat(control::socket_path().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
  EXPECT_EQ(control::socket_path(), directory_ + "/molt/" + std::to_string(getpid()) + "/control");
}

TEST_F(ServerTest, StartsAndStopsAgain) {
  start();
  EXPECT_EQ(control::start_with(options_, limits_).error().code, EALREADY);
  for (int i = 0; i < 5; ++i) {
    const std::string path = control::socket_path();
    control::stop();
    EXPECT_FALSE(std::filesystem::exists(path));
    EXPECT_EQ(control::socket_path(), "");
    EXPECT_FALSE(Client(path).is_connected());
    start();
    EXPECT_TRUE(serves_others());
  }
  control::stop();
  control::stop();
}

TEST_F(ServerTest, MakesARemovedSocketAnew) {
  start();
  Client before = connect();
  const std::filesystem::path path = control::socket_path();
  // The file alone; all that it lies in; another one in its place.
  for (const auto& lost : {path, path.parent_path().parent_path(), path}) {
    std::filesystem::remove_all(lost);
    EXPECT_FALSE(Client(path).is_connected());
    if (lost == path) {
      const Fd other(open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    }
    EXPECT_TRUE(control::start_with(options_, limits_));
    EXPECT_TRUE(serves_others());
    EXPECT_EQ(control::start_with(options_, limits_).error().code, EALREADY);
    EXPECT_EQ(error_code(before.ask("molt.GetInfo")), 0) << "who was connected stays so";
  }
  control::stop();
  EXPECT_FALSE(std::filesystem::exists(path));
}

// Holds the `molt` thread for a while, as a busy system does that gives it no turn. Who traces a thread is another
// process.
class Held {
 public:
  explicit Held(std::chrono::microseconds time) {
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    const pid_t tid = test::molt_thread();
    int ends[2] = {};
    if (pipe(ends) != 0) return;
    child_ = fork();
    if (child_ == 0) {
      char done = 0;
      if (ptrace(PTRACE_SEIZE, tid, nullptr, nullptr) == 0 &&
          ptrace(PTRACE_INTERRUPT, tid, nullptr, nullptr) == 0 &&
          waitpid(tid, nullptr, __WALL) == tid && write(ends[1], &done, 1) == 1) {
        // tidy: sleep-ok it has no turn for so long
        usleep(static_cast<useconds_t>(time.count()));
      }
      _exit(0);
    }
    close(ends[1]);
    char done = 0;
    is_held_ = read(ends[0], &done, 1) == 1;
    close(ends[0]);
  }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  ~Held() { waitpid(child_, nullptr, 0); }
  bool is_held() const { return is_held_; }

 private:
  pid_t child_ = -1;
  bool is_held_ = false;
};

TEST_F(ServerTest, MakesARemovedSocketAnewHoweverLate) {
  start();
  std::filesystem::remove(control::socket_path());
  const Held held(std::chrono::milliseconds(300));
  ASSERT_TRUE(held.is_held());
  EXPECT_TRUE(control::start_with(options_, limits_));
  EXPECT_TRUE(serves_others());
}

TEST_F(ServerTest, FailsWithoutATrace) {
  options_.directory = directory_ + "/missing";
  setenv("MOLT_DIRECTORY", options_.directory.c_str(), 1);
  setenv("XDG_RUNTIME_DIR", options_.directory.c_str(), 1);
  const int before = test::count_descriptors();
  // /run and /tmp are there as a rule; whatever comes of it, the descriptors are as they were.
  if (control::start_with(options_, limits_)) control::stop();
  EXPECT_EQ(test::count_descriptors(), before);
  unsetenv("MOLT_DIRECTORY");
  unsetenv("XDG_RUNTIME_DIR");
  remove_process_directory();
  options_.directory = directory_;
  start();
  EXPECT_TRUE(serves_others());
}

TEST_F(ServerTest, FitsLongPaths) {
  std::string deep = directory_;
  while (deep.size() < 200) {
    deep += "/" + std::string(40, 'x');
    ASSERT_EQ(mkdir(deep.c_str(), 0700), 0);
  }
  options_.directory = deep;
  start();
  ASSERT_GT(control::socket_path().size(), 108u);
  const Fd folder(open(control::socket_path().substr(0, control::socket_path().rfind('/')).c_str(),
                       O_PATH | O_CLOEXEC));
  Client client("/proc/self/fd/" + std::to_string(folder.get()) + "/control");
  EXPECT_EQ(error_code(client.ask("molt.GetInfo")), 0);
}

TEST_F(ServerTest, UsesNoneOfTheHostsDescriptors) {
  const int before = test::count_descriptors();
  start();
  EXPECT_EQ(test::count_descriptors(), before);
  {
    Client client = connect();
    EXPECT_EQ(error_code(client.ask("molt.Load", {{"path", "x"}}, file_with("name=a").get())), 0);
    EXPECT_EQ(error_code(client.ask("molt.Tree")), 0);
    EXPECT_EQ(test::count_descriptors(), before + 1) << "the client's own";
  }
  control::stop();
  EXPECT_EQ(test::count_descriptors(), before);
}

TEST_F(ServerTest, LoadsTheVeryFileThatTheClientOpened) {
  start();
  struct stat wanted {};
  std::atomic<bool> is_same{false};
  const Fd file = file_with("name=a version=1");
  ASSERT_EQ(fstat(file.get(), &wanted), 0);
  std::string path;
  log::Requester requester;
  fake::on_load([&](const module::LoadRequest& request) {
    struct stat info {};
    if (path.empty()) {  // the first
      path = request.path;
      requester = log::current_requester();
    }
    is_same.store(fstat(request.fd, &info) == 0 && info.st_ino == wanted.st_ino,
                  std::memory_order_release);
  });
  Client client = connect();
  const Json reply = client.ask("molt.Load", {{"path", "/opt/a.so"}}, file.get());
  EXPECT_EQ(text(reply, "name"), "a");
  EXPECT_TRUE(is_same.load(std::memory_order_acquire));
  EXPECT_EQ(path, "/opt/a.so");
  EXPECT_EQ(requester.pid, getpid());
  EXPECT_EQ(requester.uid, geteuid());
  EXPECT_FALSE(requester.comm.empty());
  EXPECT_EQ(error_code(client.ask("molt.Load", {{"path", "x"}}, file.get())), 0);
  // Without a file, and with one that is none.
  EXPECT_EQ(error_code(client.ask("molt.Load", {{"path", "x"}})), EBADF);
  const Fd device(open("/dev/zero", O_RDONLY | O_CLOEXEC));
  const Json refused = client.ask("molt.Load", {{"path", "x"}}, device.get());
  EXPECT_EQ(error_code(refused), EINVAL);
  EXPECT_EQ(error_class(refused), "refused");
}

TEST_F(ServerTest, GivesAFileToItsOwnRequestOnly) {
  start();
  Client client = connect();
  // With a request that takes none: closed unseen.
  EXPECT_EQ(error_code(client.ask("molt.GetInfo", Json::object(), file_with("name=a").get())), 0);
  EXPECT_EQ(error_code(client.ask("molt.Load", {{"path", "x"}})), EBADF);
  // Behind a request that waits in the same buffer.
  ASSERT_TRUE(client.send("molt.GetInfo"));
  ASSERT_TRUE(client.send("molt.Load", {{"path", "x"}}, file_with("name=b").get()));
  EXPECT_EQ(error_code(client.receive()), 0);
  EXPECT_EQ(text(client.receive(), "name"), "b");
}

TEST_F(ServerTest, WhatAModuleOpensIsOpenForTheHost) {
  start();
  std::atomic<int> opened{-1};
  fake::on_load([&](const module::LoadRequest&) {
    opened.store(eventfd(5, EFD_CLOEXEC), std::memory_order_release);
  });
  Client client = connect();
  EXPECT_EQ(error_code(client.ask("molt.Load", {{"path", "x"}}, file_with("name=a").get())), 0);
  const Fd fd(opened.load(std::memory_order_acquire));
  eventfd_t value = 0;
  EXPECT_EQ(eventfd_read(fd.get(), &value), 0);
  EXPECT_EQ(value, 5u);
}

TEST_F(ServerTest, OneOperationHoldsUpNoOther) {
  start();
  Gate gate;
  fake::on_load([&](const module::LoadRequest&) { gate.pass(); });
  std::vector<Client> blocked;
  for (int i = 0; i < 10; ++i) {
    blocked.push_back(connect());
    ASSERT_TRUE(blocked.back().send("molt.Load", {{"path", "x"}},
                                    file_with("name=m" + std::to_string(i)).get()));
  }
  EXPECT_TRUE(eventually([&] { return gate.holds(10); }));
  Client waiting = connect();
  ASSERT_TRUE(waiting.send("molt.Wait", {{"name", "m3"}}));
  EXPECT_TRUE(serves_others());
  EXPECT_EQ(text(connect().ask("molt.GetInfo"), "operation"), "an operation");
  gate.open();
  for (Client& client : blocked) EXPECT_EQ(error_code(client.receive()), 0);
  EXPECT_EQ(error_code(waiting.receive()), 0);
}

TEST_F(ServerTest, AnswersInOrder) {
  start();
  Client client = connect();
  std::string requests;
  for (int i = 0; i < 50; ++i) {
    requests += R"({"method":"molt.Get","parameters":{"path":"host/pid"}})";
    requests += '\0';
    requests += R"({"method":"molt.List"})";
    requests += '\0';
  }
  ASSERT_TRUE(client.send_raw(requests));
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(text(client.receive(), "value"), std::to_string(getpid()));
    EXPECT_TRUE(field(client.receive(), "modules").is_array());
  }
}

TEST_F(ServerTest, AnswersOneWhoOnlyEndedItsSending) {
  start();
  Client client = connect();
  ASSERT_TRUE(client.send("molt.Get", {{"path", "host/name"}}));
  ASSERT_TRUE(client.send("molt.GetInfo"));
  shutdown(client.socket(), SHUT_WR);
  EXPECT_EQ(text(client.receive(), "value"), "tester");
  EXPECT_EQ(error_code(client.receive()), 0);
  EXPECT_TRUE(client.sees_close());
}

TEST_F(ServerTest, ClosingCancelsWhatWaits) {
  start();
  std::atomic<bool> was_cancelled{false};
  std::atomic<bool> is_inside{false};
  fake::form("a");
  fake::on_unload([&](const module::UnloadRequest& request) {
    is_inside.store(true, std::memory_order_release);
    was_cancelled.store(eventually(request.cancelled), std::memory_order_release);
  });
  {
    Client client = connect();
    ASSERT_TRUE(client.send("molt.Unload", {{"name", "a"}}));
    ASSERT_TRUE(eventually([&] { return is_inside.load(std::memory_order_acquire); }));
  }
  EXPECT_TRUE(eventually([&] { return was_cancelled.load(std::memory_order_acquire); }));
  EXPECT_TRUE(eventually([] { return module::operation().empty(); }));
  EXPECT_EQ(module::list().size(), 1u) << "the process is as it was";
}

TEST_F(ServerTest, StopCancelsWhatWaits) {
  start();
  Client client = connect();
  ASSERT_TRUE(client.send("molt.Wait", {{"name", "never"}}));
  EXPECT_TRUE(serves_others());
  control::stop();
  EXPECT_TRUE(client.sees_close());
}

TEST_F(ServerTest, StopOnAWorkerIsRefused) {
  start();
  fake::on_load([](const module::LoadRequest&) { control::stop(); });
  Client client = connect();
  EXPECT_EQ(error_code(client.ask("molt.Load", {{"path", "x"}}, file_with("name=a").get())), 0);
  EXPECT_TRUE(serves_others());
}

TEST_F(ServerTest, StreamsEvents) {
  start();
  Client client = connect();
  const std::uint64_t before = log::read(0, log::capacity).next;
  ASSERT_TRUE(client.send("molt.Events", {{"since", before}, {"more", true}}));
  Json reply = client.receive();
  EXPECT_EQ(field(reply, "events").size(), 0u) << "the first reply comes at once";
  for (int i = 0; i < 3; ++i) {
    log::line("a", "line %d", i);
    reply = client.receive();
    ASSERT_EQ(field(reply, "events").size(), 1u);
    EXPECT_EQ(field(reply, "events")[0]["text"], "a: line " + std::to_string(i));
  }
  // From other threads, more at a time than one reply holds.
  constexpr int lines = 1000;
  std::vector<std::thread> writers;
  for (int t = 0; t < 4; ++t) {
    writers.emplace_back([] {
      for (int i = 0; i < lines / 4; ++i) log::line("b", "x");
    });
  }
  int seen = 0;
  while (seen < lines) {
    reply = client.receive();
    ASSERT_TRUE(reply.is_object()) << "after " << seen;
    ASSERT_EQ(field(reply, "lost"), 0);
    seen += static_cast<int>(field(reply, "events").size());
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(seen, lines);
  EXPECT_TRUE(serves_others());
}

TEST_F(ServerTest, TellsASlowFollowerWhatItMissed) {
  start();
  Client client = connect();
  ASSERT_TRUE(client.send("molt.Events", {{"since", 1}, {"more", true}}));
  ASSERT_TRUE(client.receive().is_object());
  const std::uint64_t first = log::read(0, log::capacity).next;
  const int lines = 5 * static_cast<int>(log::capacity);
  for (int i = 0; i < lines; ++i) log::line("b", "%0200d", i);
  std::uint64_t seen = 0;
  std::uint64_t lost = 0;
  std::uint64_t next = 0;
  while (next < first + static_cast<std::uint64_t>(lines)) {
    const Json reply = client.receive();
    ASSERT_TRUE(reply.is_object());
    seen += field(reply, "events").size();
    lost += *field(reply, "lost").get_ptr<const std::uint64_t*>();
    next = *field(reply, "next").get_ptr<const std::uint64_t*>();
  }
  EXPECT_GT(lost, 0u);
  EXPECT_GE(seen + lost, static_cast<std::uint64_t>(lines));
}

TEST_F(ServerTest, HandlesOutliveTheirObjectAndEndWithTheConnection) {
  start();
  fake::form("a");
  const int before = control::object_counts().live;
  Client client = connect();
  const Json handle = field(client.ask("molt.Open", {{"path", "modules/a"}}), "handle");
  const Json request = {{"handle", handle}, {"name", "refcnt"}};
  EXPECT_EQ(text(client.ask("molt.GetAttribute", request), "value"), "0");
  fake::vanish("a");
  EXPECT_EQ(error_code(client.ask("molt.GetAttribute", request)), ENODEV);
  EXPECT_EQ(control::object_counts().live, before - 2) << "the handle keeps one of three";
  client.close();
  EXPECT_TRUE(eventually([&] { return control::object_counts().live == before - 3; }));
}

TEST_F(ServerTest, ReleasesHeldBackObjectsInTime) {
  start();
  fake::form("a");
  const int before = control::object_counts().live;
  Client client = connect();
  EXPECT_EQ(error_code(client.ask("molt.Set", {{"path", "host/delay_release_ms"}, {"value", "3"}})),
            0);
  fake::vanish("a");
  EXPECT_GT(control::object_counts().live, before - 3);
  EXPECT_TRUE(eventually([&] {
    const auto counts = control::object_counts();
    return counts.live == before - 3 && counts.delayed == 0;
  })) << "nobody but the server releases them here";
  EXPECT_EQ(error_code(client.ask("molt.Set", {{"path", "host/delay_release_ms"}, {"value", "0"}})),
            0);
}

TEST_F(ServerTest, ManyClientsAtOnce) {
  start();
  constexpr int clients = 16;
  constexpr int rounds = 40;
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < clients; ++t) {
    threads.emplace_back([&, t] {
      Client client = connect();
      const std::string name = "m" + std::to_string(t);
      for (int i = 0; i < rounds; ++i) {
        const bool is_right =
            error_code(
                client.ask("molt.Load", {{"path", name}}, file_with("name=" + name).get())) == 0 &&
            text(client.ask("molt.Get", {{"path", "modules/" + name + "/refcnt"}}), "value") ==
                "0" &&
            error_code(client.ask("molt.Unload", {{"name", name}})) == 0;
        if (!is_right) wrong.fetch_add(1, std::memory_order_relaxed);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong.load(std::memory_order_relaxed), 0);
}

}  // namespace
