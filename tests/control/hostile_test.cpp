// Clients that behave badly, by mistake or on purpose. Each time: the host lives, others are served
// meanwhile, and nothing of it is left.
#include <dirent.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <random>
#include <thread>

#include "abi/wire.hpp"
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

class HostileTest : public test::Running {
 protected:
  void TearDown() override {
    EXPECT_TRUE(serves_others()) << "after all that";
    Running::TearDown();
  }
  // The rejection, and the end of the connection.
  static int rejection(Client& client) {
    const Json reply = client.receive();
    EXPECT_EQ(error_class(reply), "usage");
    EXPECT_TRUE(client.sees_close());
    return error_code(reply);
  }
};

// Descriptors of the `molt` thread, seen from outside.
int count_private_descriptors() {
  DIR* table = opendir(("/proc/self/task/" + std::to_string(test::molt_thread()) + "/fd").c_str());
  if (table == nullptr) return -1;
  int count = -2;
  while (readdir(table) != nullptr) ++count;
  closedir(table);
  return count;
}

TEST_F(HostileTest, SendsGarbage) {
  start();
  const std::string json = R"({"method":"molt.List"})";
  for (const std::string& garbage :
       {std::string("hello\0", 6), std::string("\0", 1),
        std::string("GET / HTTP/1.1\r\n\r\n\0", 19), std::string("\xff\xfe\x80\0", 4),
        std::string("[1,2]\0", 6), json + "x" + '\0', std::string("{\"method\":\0", 11)}) {
    Client client = connect();
    ASSERT_TRUE(client.send_raw(garbage));
    EXPECT_EQ(rejection(client), EBADMSG) << garbage;
  }
  std::mt19937 random(1);
  for (int i = 0; i < 100; ++i) {
    std::string bytes(random() % 4096 + 1, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    Client client = connect();
    client.send_raw(bytes);
  }
}

TEST_F(HostileTest, NestsAHundredThousandDeep) {
  start();
  for (const char* open : {"[", "{\"a\":"}) {
    std::string deep = R"({"method":"molt.List","parameters":)";
    while (deep.size() + 10 < wire::request_bytes_max) deep += open;
    deep += '\0';
    Client client = connect();
    ASSERT_TRUE(client.send_raw(deep));
    EXPECT_EQ(rejection(client), EBADMSG);
  }
  Client client = connect();
  client.send_raw(std::string(100'000, '[') + '\0');
  EXPECT_EQ(rejection(client), EMSGSIZE);
}

TEST_F(HostileTest, SendsTenMebibytes) {
  start();
  Client client = connect();
  const std::string huge(10 << 20, 'x');
  EXPECT_FALSE(client.send_raw(huge)) << "it is cut off long before the end";
  EXPECT_EQ(rejection(client), EMSGSIZE);
}

TEST_F(HostileTest, DiesHalfWay) {
  start();
  const std::string request = R"({"method":"molt.Get","parameters":{"path":"host/name"}})";
  for (std::size_t cut = 0; cut <= request.size(); ++cut) {
    Client client = connect();
    ASSERT_TRUE(cut == 0 || client.send_raw(request.substr(0, cut)));
  }
  // And after the end of its request, before the answer.
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(connect().send_raw(request + '\0'));
  EXPECT_TRUE(serves_others());
}

TEST_F(HostileTest, NeverEndsItsRequest) {
  limits_.partial_ms = 50;
  start();
  Client client = connect();
  ASSERT_TRUE(client.send_raw("{\"method\":"));
  const Json reply = client.receive();
  EXPECT_EQ(error_code(reply), ETIMEDOUT);
  EXPECT_TRUE(client.sees_close());
  // One that says nothing at all costs nothing, and may stay.
  Client silent = connect();
  EXPECT_EQ(error_code(connect().ask("molt.Wait", {{"name", "x"}, {"timeout_ms", 200}})),
            ETIMEDOUT);
  EXPECT_EQ(error_code(silent.ask("molt.GetInfo")), 0);
}

TEST_F(HostileTest, DripsItsRequest) {
  limits_.partial_ms = 50;
  start();
  Client client = connect();
  EXPECT_TRUE(eventually([&] { return !client.send_raw(" "); })) << "each byte is no new start";
}

TEST_F(HostileTest, Floods) {
  start();
  constexpr int requests = 10'000;
  const std::string quick = R"({"method":"molt.GetInfo"})";
  const std::string slow = R"({"method":"molt.Get","parameters":{"path":"host/pid"}})";
  for (const std::string& flood : {quick, slow}) {
    Client client = connect();
    const std::string request = flood + '\0';
    int sent = 0;
    int answered = 0;
    std::atomic<bool> is_done{false};
    std::thread reader([&] {
      while (answered < requests && error_code(client.receive()) == 0) ++answered;
      is_done.store(true, std::memory_order_release);
    });
    std::thread flooder([&] {
      while (sent < requests && client.send_raw(request)) ++sent;
    });
    int served = 0;
    while (!is_done.load(std::memory_order_acquire)) served += serves_others();
    flooder.join();
    reader.join();
    EXPECT_EQ(sent, requests);
    EXPECT_EQ(answered, requests);
    EXPECT_GT(served, 10) << "others were served meanwhile";
  }
}

TEST_F(HostileTest, NeverReads) {
  limits_.unread_ms = 100;
  start();
  for (int i = 0; i < 30; ++i) fake::form("module-with-some-name-" + std::to_string(i));
  Client client = connect();
  std::string requests;
  for (int i = 0; i < 10'000; ++i) {
    requests += R"({"method":"molt.List"})";
    requests += '\0';
  }
  EXPECT_FALSE(client.send_raw(requests)) << "it is dropped, and what it sent is not kept";
  EXPECT_TRUE(serves_others());
}

TEST_F(HostileTest, FollowsEventsAndNeverReads) {
  limits_.unread_ms = 100;
  start();
  Client client = connect();
  ASSERT_TRUE(client.send("molt.Events", {{"more", true}}));
  EXPECT_TRUE(eventually([&] {
    for (int i = 0; i < 100; ++i) log::line("a", "%0900d", i);
    char byte;
    return recv(client.socket(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 1 && !client.send_raw("x");
  }));
  EXPECT_TRUE(serves_others());
}

TEST_F(HostileTest, OpensFiveHundredConnections) {
  start();
  std::vector<Client> clients;
  for (int i = 0; i < 500; ++i) {
    clients.push_back(connect());
    ASSERT_TRUE(clients.back().is_connected()) << i << ": " << std::strerror(errno);
    EXPECT_TRUE(i % 50 != 0 || serves_others()) << i;
  }
  EXPECT_TRUE(serves_others());
  EXPECT_TRUE(eventually([] { return count_private_descriptors() < 64 + 16; }));
  EXPECT_EQ(error_code(clients.front().receive()), EUSERS) << "the first was told so";
  EXPECT_EQ(error_code(clients.back().ask("molt.GetInfo")), 0) << "the last one is served";
}

// One process with many idle connections does not push out another one's.
TEST_F(HostileTest, CannotPushOthersOut) {
  start();
  Client mine = connect();
  EXPECT_EQ(error_code(mine.ask("molt.GetInfo")), 0);
  const pid_t flooder = fork();
  if (flooder == 0) {
    std::vector<Client> clients;
    for (int i = 0; i < 200; ++i) clients.push_back(connect());
    _exit(error_code(clients.back().ask("molt.GetInfo")) == 0 ? 0 : 1);
  }
  int status = 0;
  waitpid(flooder, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(error_code(mine.ask("molt.GetInfo")), 0);
}

TEST_F(HostileTest, KeepsAllConnectionsBusy) {
  start();
  std::vector<Client> busy;
  for (std::size_t i = 0; i < limits_.connections; ++i) {
    busy.push_back(connect());
    ASSERT_TRUE(busy.back().send("molt.Wait", {{"name", "never"}}));
  }
  // Until all of them are under way, one may be taken for idle.
  Client late = connect();
  EXPECT_TRUE(eventually([&] {
    late = connect();
    return error_code(late.receive()) == EUSERS;
  }));
  busy.clear();
  EXPECT_TRUE(eventually([&] { return serves_others(); }));
}

TEST_F(HostileTest, AsksAndGoesAThousandTimes) {
  limits_.jobs = 32;
  start();
  int refused = 0;
  for (int i = 0; i < 1000; ++i) {
    // Where the server is behind with those who went, who has not asked yet may be taken for idle.
    Client client = connect();
    if (!client.send("molt.Wait", {{"name", "never"}})) {
      EXPECT_EQ(error_code(client.receive()), EUSERS);
    }
    if (i % 100 == 99) {
      Client other = connect();
      (void)other.send("molt.Get", {{"path", "host/pid"}});
      const int code = error_code(other.receive());
      EXPECT_TRUE(code == 0 || code == EAGAIN || code == EUSERS) << code;
      refused += code != 0;
    }
  }
  EXPECT_TRUE(eventually([&] { return serves_others(); })) << refused << " were refused before";
}

TEST_F(HostileTest, SendsFilesByTheThousand) {
  start();
  const Fd file = file_with("name=a");
  const int before = count_private_descriptors();
  Client client = connect();
  for (int i = 0; i < 1000; ++i) {
    if (!client.send_raw("x", file.get())) break;
  }
  ASSERT_TRUE(client.send_raw(std::string("\0", 1)));
  EXPECT_EQ(rejection(client), EBADMSG);

  // Many in one message, where one is allowed.
  Client many = connect();
  int files[100];
  std::fill(std::begin(files), std::end(files), file.get());
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof files)] = {};
  const std::string request =
      std::string(R"({"method":"molt.Load","parameters":{"path":"x"}})") + '\0';
  iovec part{const_cast<char*>(request.data()), request.size()};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  cmsghdr* rights = CMSG_FIRSTHDR(&header);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(sizeof files);
  std::memcpy(CMSG_DATA(rights), files, sizeof files);
  ASSERT_EQ(sendmsg(many.socket(), &header, 0), static_cast<ssize_t>(request.size()));
  EXPECT_EQ(text(many.receive(), "name"), "a");
  many.close();
  client.close();
  EXPECT_TRUE(eventually([&] { return count_private_descriptors() == before; }))
      << count_private_descriptors() << " instead of " << before;
}

TEST_F(HostileTest, BelongsToAnotherUser) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  start();
  const auto ask_as_nobody = [&] {
    const pid_t child = fork();
    if (child == 0) {
      const uid_t nobody = 65534;
      if (setresgid(nobody, nobody, nobody) != 0 || setresuid(nobody, nobody, nobody) != 0)
        _exit(1);
      Client client = connect();
      if (!client.is_connected()) _exit(errno == EACCES ? 2 : 3);
      const Json reply = client.receive();
      const bool is_told = error_code(reply) == EPERM && error_class(reply) == "permission";
      _exit(is_told && client.sees_close() ? 4 : 5);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  };
  EXPECT_EQ(ask_as_nobody(), 2) << "the file system keeps others out";
  // Even where it does not:
  for (std::string path = control::socket_path(); path.size() >= directory_.size();
       path.resize(path.rfind('/'))) {
    ASSERT_EQ(chmod(path.c_str(), 0777), 0);
  }
  EXPECT_EQ(ask_as_nobody(), 4);
}

TEST_F(HostileTest, LeavesNoObjectsBehind) {
  start();
  fake::form("a");
  const int before = control::object_counts().live;
  for (int i = 0; i < 20; ++i) {
    Client client = connect();
    for (int j = 0; j < 50; ++j) ASSERT_TRUE(client.send("molt.Open", {{"path", "modules/a"}}));
  }
  EXPECT_TRUE(eventually([&] { return control::object_counts().live == before; }));
}

}  // namespace
