// Files on their way between two descriptor tables of one process.
#include "control/parcel.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/close_range.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <optional>
#include <string>
#include <thread>

#include "child.hpp"

using namespace molt;
using namespace molt::control;
using test::in_child;

namespace {

// As the `molt` thread: packs a file within a table of its own, in which no other descriptor is.
class Packer {
 public:
  explicit Packer(Fd& file) {
    thread_ = std::thread([&] { run(file); });
    while (!is_packed_.load(std::memory_order_acquire)) sched_yield();
  }
  ~Packer() {
    is_over_.store(true, std::memory_order_release);
    thread_.join();
  }
  // Ends the thread, and with it the descriptor.
  Result<Parcel>& parcel() { return *parcel_; }
  int number() const { return number_; }

 private:
  void run(Fd& file) {
    ASSERT_EQ(unshare(CLONE_FILES), 0);
    const int high = 700;
    number_ = fcntl(file.get(), F_DUPFD_CLOEXEC, high);
    ASSERT_EQ(syscall(SYS_close_range, 0u, high - 1u, 0u), 0);
    Fd mine(number_);
    parcel_.emplace(Parcel::pack(mine));
    is_packed_.store(true, std::memory_order_release);
    while (!is_over_.load(std::memory_order_acquire)) sched_yield();
  }

  std::thread thread_;
  std::atomic<bool> is_packed_{false};
  std::atomic<bool> is_over_{false};
  std::optional<Result<Parcel>> parcel_;
  int number_ = -1;
};

Fd temporary_file(const std::string& content, mode_t mode = 0600) {
  char path[] = "/tmp/molt-parcel-XXXXXX";
  Fd fd(mkstemp(path));
  EXPECT_EQ(write(fd.get(), content.data(), content.size()), static_cast<ssize_t>(content.size()));
  EXPECT_EQ(fchmod(fd.get(), mode), 0);
  unlink(path);
  return fd;
}

std::string content_of(const OwnFd& fd) {
  char text[256];
  const ssize_t n = pread(fd.get(), text, sizeof text, 0);
  return std::string(text, n < 0 ? 0 : static_cast<std::size_t>(n));
}

bool is_same_file(const Fd& a, const OwnFd& b) {
  struct stat x {};
  struct stat y {};
  return fstat(a.get(), &x) == 0 && fstat(b.get(), &y) == 0 && x.st_dev == y.st_dev &&
         x.st_ino == y.st_ino;
}

void become_nobody() {
  const uid_t nobody = 65534;
  ASSERT_EQ(setresuid(nobody, nobody, nobody), 0);
}

TEST(Parcel, ArrivesAsTheSameFile) {
  Fd file = temporary_file("content");
  lseek(file.get(), 3, SEEK_SET);
  Packer packer(file);
  ASSERT_TRUE(packer.parcel()) << packer.parcel().error().detail;
  const auto arrived = packer.parcel()->unpack();
  ASSERT_TRUE(arrived) << arrived.error().detail;
  EXPECT_EQ(fcntl(packer.number(), F_GETFD), -1) << "that number is nothing here";
  EXPECT_TRUE(is_same_file(file, *arrived));
  EXPECT_EQ(content_of(*arrived), "content");
  EXPECT_EQ(lseek(arrived->get(), 0, SEEK_CUR), 0) << "with a position of its own";
  EXPECT_TRUE((fcntl(arrived->get(), F_GETFD) & FD_CLOEXEC) != 0);
}

TEST(Parcel, ArrivesFromAMemfd) {
  Fd file(memfd_create("x", MFD_CLOEXEC));
  ASSERT_EQ(write(file.get(), "memory", 6), 6);
  Packer packer(file);
  const auto arrived = packer.parcel()->unpack();
  ASSERT_TRUE(arrived) << arrived.error().detail;
  EXPECT_TRUE(is_same_file(file, *arrived));
  EXPECT_EQ(content_of(*arrived), "memory");
}

TEST(Parcel, ArrivesWhereTheProcessMayNotBeLookedInto) {
  Fd file = temporary_file("content");
  in_child([&] {
    prctl(PR_SET_DUMPABLE, 0);
    Packer packer(file);
    const auto arrived = packer.parcel()->unpack();
    EXPECT_TRUE(arrived && is_same_file(file, *arrived));
  });
}

// Root's file, and a process that has become another user: the client may read it, the host may not.
TEST(Parcel, ArrivesAsACopyWhereTheHostMayNotRead) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  Fd file = temporary_file("for root only");
  in_child([&] {
    become_nobody();
    Packer packer(file);
    const auto arrived = packer.parcel()->unpack();
    ASSERT_TRUE(arrived) << arrived.error().detail;
    EXPECT_FALSE(is_same_file(file, *arrived));
    EXPECT_EQ(content_of(*arrived), "for root only");
  });
}

TEST(Parcel, ArrivesEmpty) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become another user";
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the thread sanitizer allows no threads in a forked child";
#endif
  Fd file = temporary_file("");
  Packer packer(file);
  EXPECT_TRUE(packer.parcel()->unpack());
  in_child([&] {
    become_nobody();
    Packer other(file);
    const auto arrived = other.parcel()->unpack();
    ASSERT_TRUE(arrived) << arrived.error().detail;
    EXPECT_EQ(content_of(*arrived), "");
  });
}

// Touching the mapping would raise SIGBUS.
TEST(Parcel, SurvivesAFileThatShrinks) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  Fd file = temporary_file(std::string(3 * 4096, 'x'));
  in_child([&] {
    become_nobody();
    Packer packer(file);
    ASSERT_EQ(ftruncate(file.get(), 4096), 0);
    const auto arrived = packer.parcel()->unpack();
    ASSERT_FALSE(arrived);
    EXPECT_EQ(arrived.error().code, EFAULT);
  });
}

TEST(Parcel, IsNotTakenForAnotherFileOnceThePackerIsGone) {
  Fd file = temporary_file("mine");
  Parcel parcel;
  {
    Packer packer(file);
    parcel = std::move(*packer.parcel());
  }
  const auto arrived = parcel.unpack();
  ASSERT_TRUE(arrived) << "the content is mapped still";
  EXPECT_EQ(content_of(*arrived), "mine");
}

TEST(Parcel, RefusesWhatIsNoRegularFile) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const Fd in(ends[0]);
  const Fd out(ends[1]);
  const Fd folder(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const Fd device(open("/dev/zero", O_RDONLY | O_CLOEXEC));
  for (const Fd& wrong : {std::cref(in), std::cref(folder), std::cref(device)}) {
    const auto parcel = Parcel::pack(wrong);
    ASSERT_FALSE(parcel);
    EXPECT_EQ(parcel.error().code, EINVAL);
  }
  Fd huge = temporary_file("");
  ASSERT_EQ(ftruncate(huge.get(), (1LL << 30) + 1), 0);
  EXPECT_EQ(Parcel::pack(huge).error().code, EFBIG);
}

}  // namespace
