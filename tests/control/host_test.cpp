// Hosts that do to their process what hosts do: each in a child process, which is the host.
#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <thread>

#include "base/directory.hpp"
#include "child.hpp"
#include "control/control.hpp"
#include "control/object.hpp"
#include "fake.hpp"
#include "running.hpp"

using namespace molt;
using test::Client;
using test::error_code;
using test::eventually;
using test::field;
using test::file_with;
using test::in_child;
using test::Json;
using test::text;

namespace {

class HostTest : public test::Running {
 protected:
  void TearDown() override {
    EXPECT_EQ(control::socket_path(), "") << "the test itself is no host";
    Running::TearDown();
  }

  // A client in a process of its own, with descriptors that the host's troubles do not reach.
  class Helper {
   public:
    explicit Helper(const HostTest& test) {
      EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair_), 0);
      pid_ = fork();
      close(pair_[pid_ == 0 ? 0 : 1]);
      if (pid_ != 0) return;
      for (char order; read(pair_[1], &order, 1) == 1;) {
        char answer = 0;
        if (order == 's') answer = test.serves_others();
        if (order == 'u') {
          Client client = test.connect();
          answer = error_code(client.ask("molt.Unload", {{"name", "a"}})) == 0;
        }
        if (write(pair_[1], &answer, 1) != 1) break;
      }
      _exit(0);
    }
    ~Helper() {
      close(pair_[0]);  // its signal to end
      waitpid(pid_, nullptr, 0);
    }
    int socket() const { return pair_[0]; }
    bool ask(char order) const {
      char answer = 0;
      return write(pair_[0], &order, 1) == 1 && read(pair_[0], &answer, 1) == 1 && answer == 1;
    }

   private:
    int pair_[2];
    pid_t pid_;
  };
};

std::string status_of(const std::string& task) {
  std::ifstream in("/proc/self/task/" + task + "/status");
  return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<std::string> tasks_named(const std::string& prefix) {
  std::vector<std::string> found;
  DIR* tasks = opendir("/proc/self/task");
  while (const dirent* entry = readdir(tasks)) {
    if (entry->d_name[0] != '.' && status_of(entry->d_name).find("Name:\t" + prefix) == 0)
      found.emplace_back(entry->d_name);
  }
  closedir(tasks);
  return found;
}

TEST_F(HostTest, ClosesEverything) {
  in_child([&] {
    start();
    fake::form("a");
    const Helper helper(*this);
    ASSERT_TRUE(helper.ask('s'));
    for (int fd = 3; fd < 4096; ++fd) {
      if (fd != helper.socket()) close(fd);
    }
    EXPECT_TRUE(helper.ask('s'));
    EXPECT_TRUE(helper.ask('u'));
    close(0);
    close(1);
    // What the host opens next has the numbers of what it closed, and nobody else writes there.
    const Fd file(open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    EXPECT_LT(file.get(), 3);
    EXPECT_TRUE(helper.ask('s'));
    struct stat info {};
    EXPECT_EQ(fstat(file.get(), &info), 0);
    EXPECT_EQ(info.st_size, 0);
    control::stop();
  });
}

TEST_F(HostTest, HasNoDescriptorsLeft) {
  in_child([&] {
    start();
    fake::form("a");
    const Helper helper(*this);
    const rlimit few{64, 64};
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    while (dup(2) >= 0) {
    }
    EXPECT_EQ(errno, EMFILE);
    EXPECT_TRUE(helper.ask('s'));
    EXPECT_TRUE(helper.ask('u'));
    control::stop();
    start();  // not even this needs one
    EXPECT_TRUE(helper.ask('s'));
    control::stop();
  });
}

TEST_F(HostTest, AllowsItselfAlmostNoDescriptors) {
  in_child([&] {
    start();
    const Helper helper(*this);
    const rlimit few{10, 10};
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    std::vector<Client> idle;
    for (int i = 0; i < 8; ++i) {
      EXPECT_TRUE(helper.ask('s')) << "with room for a client or two";
    }
    control::stop();
  });
}

TEST_F(HostTest, SendsItselfSignals) {
  in_child([&] {
    start();
    for (const char* name : {"molt\n", "molt-bell\n", "molt-worker\n"}) {
      ASSERT_TRUE(eventually([&] { return !tasks_named(name).empty(); })) << name;
      for (const std::string& task : tasks_named(name)) {
        // All but SIGKILL, SIGSTOP, the two that libc keeps for itself, and faults: one that is blocked
        // kills, and SIGTRAP is how code is changed. A thread that is being born has its creator's
        // name, and libc blocks all signals until it runs.
        std::string blocked;
        EXPECT_TRUE(eventually([&] {
          const std::string status = status_of(task);
          const std::size_t mask = status.find("SigBlk:\t");
          if (mask != std::string::npos) blocked = status.substr(mask + 8, 16);
          return blocked == "fffffffe3ffbfa27";
        })) << name
            << blocked;
      }
    }
    // A host that waits for signals gets them, although other threads exist.
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGUSR1);
    sigprocmask(SIG_BLOCK, &wanted, nullptr);
    for (int i = 0; i < 100; ++i) {
      kill(getpid(), SIGUSR1);
      int signal = 0;
      sigwait(&wanted, &signal);
      EXPECT_EQ(signal, SIGUSR1);
    }
    EXPECT_TRUE(serves_others());
    control::stop();
  });
}

TEST_F(HostTest, BecomesAnotherUser) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  in_child([&] {
    start();
    const Helper helper(*this);
    const uid_t nobody = 65534;
    ASSERT_EQ(setresgid(nobody, nobody, nobody), 0);  // libc signals all threads to do the same
    ASSERT_EQ(setresuid(nobody, nobody, nobody), 0);
    EXPECT_TRUE(helper.ask('s')) << "root still reaches it";
    for (const std::string& task : tasks_named("molt")) {
      EXPECT_NE(status_of(task).find("Uid:\t65534\t65534\t65534\t65534"), std::string::npos);
    }
    control::stop();
  });
}

TEST_F(HostTest, ChangesItsRoot) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can change its root";
  in_child([&] {
    start();
    fake::form("a");
    const Helper helper(*this);
    const std::string path = control::socket_path();
    ASSERT_EQ(mkdir((directory_ + "/root").c_str(), 0700), 0);
    ASSERT_EQ(chroot((directory_ + "/root").c_str()), 0);
    EXPECT_TRUE(helper.ask('s'));
    EXPECT_TRUE(helper.ask('u'));
    control::stop();
    EXPECT_FALSE(helper.ask('s'));
  });
}

TEST_F(HostTest, GetsNoThreads) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become a user without other processes";
  in_child([&] {
    const uid_t lonely = 54321;
    ASSERT_EQ(chown(directory_.c_str(), lonely, lonely), 0);
    ASSERT_EQ(setresuid(lonely, lonely, lonely), 0);
    const rlimit none{1, 1};
    const int before = test::count_descriptors();
    ASSERT_EQ(setrlimit(RLIMIT_NPROC, &none), 0);
    const Status started = control::start_with(options_, limits_);
    ASSERT_FALSE(started);
    EXPECT_EQ(started.error().code, EAGAIN) << started.error().detail;
    EXPECT_EQ(test::count_descriptors(), before);
    EXPECT_TRUE(eventually([] { return tasks_named("").size() == 1; }));
  });
}

// Enough for the server, and for one worker only.
TEST_F(HostTest, GetsFewThreads) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become a user without other processes";
  in_child([&] {
    const uid_t lonely = 54322;
    ASSERT_EQ(chown(directory_.c_str(), lonely, lonely), 0);
    ASSERT_EQ(setresuid(lonely, lonely, lonely), 0);
    const rlimit few{4, 4};
    ASSERT_EQ(setrlimit(RLIMIT_NPROC, &few), 0);
    start();
    EXPECT_TRUE(serves_others());
    Client waiting = connect();
    ASSERT_TRUE(waiting.send("molt.Wait", {{"name", "a"}}));
    EXPECT_EQ(error_code(connect().ask("molt.GetInfo")), 0) << "what is quick needs no worker";
    fake::form("a");
    EXPECT_EQ(error_code(waiting.receive()), 0);
    control::stop();
  });
}

TEST_F(HostTest, Forks) {
  in_child([&] {
    start();
    fake::form("a");
    const std::string parents = control::socket_path();
    Client before = connect();
    ASSERT_EQ(error_code(before.ask("molt.GetInfo")), 0);
    const int descriptors = test::count_descriptors();
    in_child([&] {
      control::after_fork_child();
      EXPECT_EQ(control::socket_path(), "") << "not running here";
      EXPECT_EQ(test::count_descriptors(), descriptors) << "nothing of the server is inherited";
      control::stop();
      fake::form("b");  // modules come and go without a server
      start();
      EXPECT_NE(control::socket_path(), parents);
      Client client = connect();
      EXPECT_EQ(field(client.ask("molt.GetInfo"), "pid"), getpid());
      EXPECT_EQ(text(client.ask("molt.Get", {{"path", "modules/a/refcnt"}}), "value"), "0");
      EXPECT_EQ(text(client.ask("molt.Get", {{"path", "modules/b/refcnt"}}), "value"), "0");
      EXPECT_NE(field(Client(parents).ask("molt.GetInfo"), "pid"), getpid());
      control::stop();
      remove_process_directory();
    });
    EXPECT_EQ(error_code(before.ask("molt.GetInfo")), 0);
    EXPECT_TRUE(serves_others());
    control::stop();
    remove_process_directory();
  });
}

// While all locks of the server are taken and given back as fast as can be.
TEST_F(HostTest, ForksUnderLoad) {
  in_child([&] {
    start();
    std::atomic<bool> is_over{false};
    std::thread load([&] {
      Client client = connect();
      while (!is_over.load(std::memory_order_acquire)) {
        EXPECT_EQ(error_code(client.ask("molt.Load", {{"path", "x"}}, file_with("name=a").get())),
                  0);
        EXPECT_EQ(error_code(client.ask("molt.Unload", {{"name", "a"}})), 0);
      }
    });
    for (int i = 0; i < 50; ++i) {
      const pid_t child = fork();
      if (child == 0) {
        control::after_fork_child();
        // The fake has locks that fork does not know of: only what needs none of them.
        const bool is_right = control::socket_path().empty() && control::object_counts().live == 0;
        control::stop();
        _exit(is_right ? 0 : 1);
      }
      int status = 0;
      waitpid(child, &status, 0);
      EXPECT_EQ(status, 0);
    }
    is_over.store(true, std::memory_order_release);
    load.join();
    control::stop();
  });
}

TEST_F(HostTest, AModuleForks) {
  in_child([&] {
    start();
    std::atomic<pid_t> child{0};
    fake::on_load([&](const module::LoadRequest&) {
      const pid_t forked = fork();
      if (forked == 0) {
        control::after_fork_child();
        return;  // and goes on in the child, as a careless module does
      }
      child.store(forked, std::memory_order_release);
    });
    Client client = connect();
    EXPECT_EQ(error_code(client.ask("molt.Load", {{"path", "x"}}, file_with("name=a").get())), 0);
    int status = -1;
    EXPECT_EQ(waitpid(child.load(std::memory_order_acquire), &status, 0),
              child.load(std::memory_order_acquire))
        << "it ends: its only thread was a worker";
    EXPECT_EQ(status, 0);
    EXPECT_TRUE(serves_others());
    control::stop();
  });
}

// An orderly program, and one that was replaced by another: the next one takes its place.
TEST_F(HostTest, ExecutesItselfAnew) {
  in_child([&] {
    start();
    const std::string path = control::socket_path();
    // As exec does it: all threads and descriptors gone, directory and socket still there.
    control::after_fork_child();
    ASSERT_TRUE(std::ifstream(path.substr(0, path.rfind('/')) + "/owner").good());
    start();
    EXPECT_EQ(control::socket_path(), path);
    EXPECT_TRUE(serves_others());
    control::stop();
  });
}

}  // namespace
