// The process's own directory: where it is made, what is refused, what is cleared away.
#include "base/directory.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utime.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "abi/wire.hpp"
#include "base/fd.hpp"
#include "base/sanitizer.hpp"
#include "child.hpp"

namespace fs = std::filesystem;
using namespace molt;
using test::in_child;

static_assert(wire::socket_name == control_socket_name);

namespace {

pid_t ended_process() {
  const pid_t child = fork();
  if (child == 0) _exit(0);
  waitpid(child, nullptr, 0);
  return child;
}

std::string read_file(const fs::path& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

unsigned mode_of(const fs::path& path) {
  struct stat info {};
  return lstat(path.c_str(), &info) == 0 ? info.st_mode & 07777u : 0;
}

std::string pid_namespace() {
  struct stat info {};
  return stat("/proc/self/ns/pid", &info) == 0 ? std::to_string(info.st_ino) : "?";
}

class DirectoryTest : public testing::Test {
 protected:
  void SetUp() override {
    char path[] = "/tmp/molt-directory-XXXXXX";
    ASSERT_NE(mkdtemp(path), nullptr);
    base_ = path;
    unsetenv("MOLT_DIRECTORY");
    unsetenv("XDG_RUNTIME_DIR");
  }
  void TearDown() override { fs::remove_all(base_); }

  // For root there is always /run.
  void become_ordinary_user() const {
    const uid_t user = 12345;
    if (geteuid() != 0) return;
    ASSERT_EQ(chown(base_.c_str(), user, user), 0);
    ASSERT_EQ(setresuid(user, user, user), 0);
  }
  fs::path made_by(int pid) const { return base_ / "molt" / std::to_string(pid); }
  // What a process leaves behind.
  fs::path leave(int pid, const std::string& owner) const {
    const fs::path left = made_by(pid);
    fs::create_directories(left / "store");
    for (const fs::path& folder : {base_ / "molt", left, left / "store"}) {
      chmod(folder.c_str(), 0700);
    }
    std::ofstream(left / "control") << "";
    std::ofstream(left / "store" / "0123.so") << "code";
    if (!owner.empty()) std::ofstream(left / "owner") << owner;
    return left;
  }
  std::string dead_owner() const { return "pidns=" + pid_namespace() + " start=1\n"; }
  static Fd listen_in(const fs::path& folder) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::snprintf(address.sun_path, sizeof address.sun_path, "%s/control", folder.c_str());
    Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    fs::remove(folder / "control");
    EXPECT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(listen(fd.get(), 1), 0);
    return fd;
  }
  static void make_old(const fs::path& path) {
    const utimbuf long_ago{1000, 1000};
    utime(path.c_str(), &long_ago);
  }

  fs::path base_;
};

TEST_F(DirectoryTest, IsMadeOncePrivateAndSaysWhose) {
  in_child([&] {
    const auto path = process_directory(base_);
    ASSERT_TRUE(path) << path.error().detail;
    EXPECT_EQ(*path, made_by(getpid()).string());
    EXPECT_EQ(mode_of(*path), 0700u);
    EXPECT_EQ(mode_of(base_ / "molt"), 0700u);
    const std::string owner = read_file(fs::path(*path) / "owner");
    EXPECT_EQ(owner.find("pidns=" + pid_namespace() + " start="), 0u) << owner;
    EXPECT_EQ(owner.back(), '\n');
    EXPECT_EQ(*process_directory("/elsewhere"), *path) << "the first call decides";
  });
}

TEST_F(DirectoryTest, IsMadeAnewInAForkedChild) {
  in_child([&] {
    const std::string mine = *process_directory(base_);
    in_child([&] {
      remove_process_directory();
      EXPECT_TRUE(fs::exists(mine)) << "only who made it removes it";
      EXPECT_EQ(*process_directory(base_), made_by(getpid()).string());
    });
    EXPECT_EQ(*process_directory(base_), mine);
  });
}

TEST_F(DirectoryTest, IsNotHurtByTheHostsUmask) {
  in_child([&] {
    umask(0777);
    const auto path = process_directory(base_);
    ASSERT_TRUE(path) << path.error().detail;
    EXPECT_EQ(mode_of(*path), 0700u);
  });
}

TEST_F(DirectoryTest, TakesCandidatesInOrder) {
  const fs::path from_environment = base_ / "environment";
  fs::create_directory(from_environment);
  chmod(from_environment.c_str(), 0755);
  setenv("MOLT_DIRECTORY", from_environment.c_str(), 1);
  in_child(
      [&] { EXPECT_EQ(process_directory("")->find(from_environment.string() + "/molt/"), 0u); });
  in_child([&] { EXPECT_EQ(*process_directory(base_), made_by(getpid()).string()); });
  in_child([&] {
    const auto path = process_directory(base_ / "missing");
    EXPECT_EQ(path->find(from_environment.string()), 0u);
  });
}

TEST_F(DirectoryTest, TakesTheUsersOwnDirectory) {
  setenv("XDG_RUNTIME_DIR", base_.c_str(), 1);
  in_child([&] {
    become_ordinary_user();
    EXPECT_EQ(*process_directory(""), made_by(getpid()).string());
  });
}

TEST_F(DirectoryTest, UsesAnotherNameWhereEverybodyMayWrite) {
  chmod(base_.c_str(), 01777);
  in_child([&] {
    const std::string expected = base_.string() + "/molt-" + std::to_string(geteuid()) + "/";
    EXPECT_EQ(process_directory(base_)->find(expected), 0u);
  });
}

TEST_F(DirectoryTest, RefusesWhatOthersCouldReplace) {
  const fs::path good = base_ / "good";
  const fs::path bad = base_ / "bad";
  const auto refuses_bad = [&] {
    in_child([&] {
      setenv("MOLT_DIRECTORY", good.c_str(), 1);
      const auto path = process_directory(bad);
      ASSERT_TRUE(path) << path.error().detail;
      EXPECT_EQ(path->find(good.string()), 0u) << *path;
    });
    fs::remove_all(bad);
    fs::create_directory(bad);
    chmod(bad.c_str(), 0755);
  };
  fs::create_directory(good);
  fs::create_directory(bad);
  chmod(good.c_str(), 0755);

  chmod(bad.c_str(), 0777);  // without the sticky bit
  refuses_bad();
  chmod(bad.c_str(), 0775);
  refuses_bad();
  fs::create_directory_symlink(good, bad / "molt");
  refuses_bad();
  std::ofstream(bad / "molt") << "a file";
  refuses_bad();
  fs::create_directory(bad / "molt");
  chmod((bad / "molt").c_str(), 0770);
  refuses_bad();
  if (geteuid() == 0) {
    const uid_t nobody = 65534;
    fs::create_directory(bad / "molt");
    ASSERT_EQ(chown((bad / "molt").c_str(), nobody, nobody), 0);
    refuses_bad();
    ASSERT_EQ(chown(bad.c_str(), nobody, nobody), 0);
    refuses_bad();
  }
  // One level below: the folder of this very process.
  in_child([&] {
    fs::create_directory(bad / "molt");
    chmod((bad / "molt").c_str(), 0700);
    fs::create_directory_symlink(good, bad / "molt" / std::to_string(getpid()));
    setenv("MOLT_DIRECTORY", good.c_str(), 1);
    EXPECT_EQ(process_directory(bad)->find(good.string()), 0u);
  });
}

TEST_F(DirectoryTest, ClearsAwayWhatTheDeadLeft) {
  const fs::path dead = leave(ended_process(), dead_owner());
  const fs::path renumbered = leave(getppid(), dead_owner());  // lives, but began at another time
  const fs::path foreign = leave(999'999, "pidns=1 start=1\n");
  const fs::path unsigned_new = leave(999'998, "");
  const fs::path unsigned_old = leave(999'997, "");
  make_old(unsigned_old);
  const fs::path no_number = base_ / "molt" / "12x";
  fs::create_directory(no_number);
  const fs::path with_more = leave(ended_process(), dead_owner());
  std::ofstream(with_more / "notes") << "not ours";

  in_child([&] { ASSERT_TRUE(process_directory(base_)); });
  EXPECT_FALSE(fs::exists(dead));
  EXPECT_FALSE(fs::exists(renumbered));
  EXPECT_TRUE(fs::exists(foreign / "store" / "0123.so"));
  EXPECT_TRUE(fs::exists(unsigned_new / "store" / "0123.so"));
  EXPECT_FALSE(fs::exists(unsigned_old));
  EXPECT_TRUE(fs::exists(no_number));
  EXPECT_TRUE(fs::exists(with_more / "notes")) << "nothing unknown is removed";
  EXPECT_FALSE(fs::exists(with_more / "store"));
}

TEST_F(DirectoryTest, LeavesTheLivingAlone) {
  in_child([&] {
    const fs::path mine = *process_directory(base_);
    in_child([&] { ASSERT_TRUE(process_directory(base_)); });
    EXPECT_TRUE(fs::exists(mine / "owner"));
  });
}

// What removes old files from /tmp leaves a socket that is in use.
TEST_F(DirectoryTest, LeavesTheLivingAloneWhoHaveLostTheirSignature) {
  const fs::path living = leave(999'999, "");
  const Fd listens = listen_in(living);
  const fs::path died = leave(999'998, "");
  { const Fd listened = listen_in(died); }
  make_old(living);
  make_old(died);
  in_child([&] { ASSERT_TRUE(process_directory(base_)); });
  EXPECT_TRUE(fs::exists(living / "control"));
  EXPECT_FALSE(fs::exists(died));
}

TEST_F(DirectoryTest, IsMadeAnewWhenSomebodyHasRemovedIt) {
  in_child([&] {
    const fs::path mine = *process_directory(base_);
    fs::remove_all(base_ / "molt");
    EXPECT_EQ(*process_directory("/elsewhere"), *process_directory(base_));
    remove_process_directory();
    EXPECT_EQ(*process_directory(base_), mine.string());
    EXPECT_TRUE(fs::exists(mine / "owner"));
  });
}

// A container that starts again has the same process id in another namespace.
TEST_F(DirectoryTest, TakesItsOwnPlaceFromADeadNamespaceOnly) {
  setenv("MOLT_DIRECTORY", "/tmp", 1);
  in_child([&] {
    const fs::path left = leave(getpid(), "pidns=1 start=1\n");
    const Fd living = listen_in(left);
    make_old(left);
    EXPECT_NE(process_directory(base_)->find(base_.string() + "/"), 0u) << "somebody listens there";
    EXPECT_TRUE(fs::exists(left / "store"));
    remove_process_directory();
  });
  in_child([&] {
    const fs::path left = leave(getpid(), "pidns=1 start=1\n");
    { const Fd died = listen_in(left); }
    make_old(left);
    EXPECT_EQ(*process_directory(base_), left.string());
    EXPECT_FALSE(fs::exists(left / "store"));
    EXPECT_NE(read_file(left / "owner").find("pidns=" + pid_namespace()), std::string::npos);
  });
  unsetenv("MOLT_DIRECTORY");
}

TEST_F(DirectoryTest, IsRemovedAtTheEnd) {
  in_child([&] {
    const fs::path mine = *process_directory(base_);
    fs::create_directory(mine / "store");
    std::ofstream(mine / "store" / "1.so") << "x";
    std::ofstream(mine / "control") << "x";
    if (under_sanitizer()) {
      remove_process_directory();
      EXPECT_TRUE(fs::exists(mine / "store" / "1.so")) << "its last report reads names there";
      EXPECT_TRUE(fs::exists(mine / "owner")) << "nobody else could remove it";
      fs::remove(mine / "store" / "1.so");
    }
    remove_process_directory();
    EXPECT_FALSE(fs::exists(mine));
    remove_process_directory();
    EXPECT_EQ(*process_directory(base_), mine.string()) << "and made again where it is needed";
  });
}

TEST_F(DirectoryTest, SaysWhyThereIsNone) {
  in_child([&] {
    become_ordinary_user();
    // /tmp is the last candidate: take it from this user by putting a file there.
    const std::string taken = "/tmp/molt-" + std::to_string(geteuid());
    std::ofstream(taken) << "x";
    const auto path = process_directory(base_ / "missing");
    unlink(taken.c_str());
    ASSERT_FALSE(path);
    EXPECT_EQ(path.error().code, EACCES);
    EXPECT_NE(std::string(path.error().detail).find("missing"), std::string::npos)
        << path.error().detail;
  });
}

TEST_F(DirectoryTest, LeavesNothingWhereNothingFits) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can mount a small file system";
  in_child([&] {
    ASSERT_EQ(unshare(CLONE_NEWNS), 0);
    ASSERT_EQ(mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
    ASSERT_EQ(mount("none", base_.c_str(), "tmpfs", 0, "size=16k,mode=0755"), 0);
    std::ofstream(base_ / "all") << std::string(1 << 20, 'x');
    setenv("MOLT_DIRECTORY", "/tmp", 1);
    const auto path = process_directory(base_);
    ASSERT_TRUE(path) << path.error().detail;
    EXPECT_NE(path->find(base_.string() + "/"), 0u) << *path;
    EXPECT_FALSE(fs::exists(made_by(getpid())));
    remove_process_directory();
  });
}

TEST_F(DirectoryTest, KnowsWhereCodeMayLie) {
  EXPECT_TRUE(allows_exec(base_));
  EXPECT_FALSE(allows_exec(base_ / "missing"));
  if (geteuid() != 0) GTEST_SKIP() << "only root can mount a noexec file system";
  in_child([&] {
    ASSERT_EQ(unshare(CLONE_NEWNS), 0);
    ASSERT_EQ(mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
    ASSERT_EQ(mount("none", base_.c_str(), "tmpfs", MS_NOEXEC, nullptr), 0);
    EXPECT_FALSE(allows_exec(base_));
  });
}

}  // namespace
