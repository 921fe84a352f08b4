#include "base/fd.hpp"
#include "base/own_fd.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <type_traits>
#include <vector>

namespace molt {
namespace {

static_assert(!std::is_copy_constructible_v<Fd> && !std::is_copy_assignable_v<Fd>);
static_assert(std::is_nothrow_move_constructible_v<Fd> && std::is_nothrow_move_assignable_v<Fd>);

bool is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }
int open_null() { return open("/dev/null", O_RDONLY | O_CLOEXEC); }

TEST(fd, closes_at_its_end) {
  int number;
  {
    Fd fd(open_null());
    ASSERT_TRUE(fd);
    number = fd.get();
    EXPECT_TRUE(is_open(number));
  }
  EXPECT_FALSE(is_open(number));
}

TEST(fd, owns_nothing) {
  EXPECT_FALSE(Fd());
  EXPECT_FALSE(Fd(-1));
  EXPECT_EQ(Fd().get(), -1);
}

TEST(fd, zero_is_a_descriptor) {
  Fd fd(0);
  EXPECT_TRUE(fd);
  EXPECT_EQ(fd.release(), 0);
}

TEST(fd, moves) {
  Fd a(open_null());
  const int number = a.get();
  Fd b(std::move(a));
  EXPECT_FALSE(a);
  EXPECT_EQ(b.get(), number);

  Fd c(open_null());
  const int replaced = c.get();
  c = std::move(b);
  EXPECT_EQ(c.get(), number);
  EXPECT_FALSE(is_open(replaced));
  EXPECT_TRUE(is_open(number));

  Fd& alias = c;
  c = std::move(alias);
  EXPECT_EQ(c.get(), number);
  EXPECT_TRUE(is_open(number));
}

TEST(fd, releases_and_resets) {
  Fd fd(open_null());
  const int number = fd.release();
  EXPECT_FALSE(fd);
  EXPECT_TRUE(is_open(number));
  fd.reset(number);
  fd.reset();
  EXPECT_FALSE(is_open(number));
}

TEST(own_fd, is_out_of_the_way_and_closed_at_its_end) {
  int number;
  {
    OwnFd fd{Fd(open_null())};
    number = fd.get();
    EXPECT_GE(number, 48);
    EXPECT_LT(number, 64);  // the table need not grow for it
    EXPECT_TRUE(fd.is_there());
  }
  EXPECT_FALSE(is_open(number));
}

TEST(own_fd, is_out_of_the_way_of_a_host_with_many) {
  std::vector<Fd> many;
  do {
    many.emplace_back(open_null());
  } while (many.back().get() < 32);
  const OwnFd fd{Fd(open_null())};
  EXPECT_GE(fd.get(), 200);
}

// The host has closed it, and opened another file that has its number now.
TEST(own_fd, leaves_alone_what_has_its_number) {
  int number;
  {
    OwnFd fd{Fd(open_null())};
    number = fd.get();
    close(number);
    EXPECT_FALSE(fd.is_there());
    const Fd another(open("/dev/zero", O_RDONLY | O_CLOEXEC));
    ASSERT_EQ(dup2(another.get(), number), number);
    EXPECT_FALSE(fd.is_there());
  }
  EXPECT_TRUE(is_open(number));
  close(number);
}

}  // namespace
}  // namespace molt
