// Operations in a process whose descriptors are used up: a child, whose limits are its own.

#include "base/descriptor_room.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include "base/fd.hpp"

namespace molt {
namespace {

bool in_a_child(const std::function<bool()>& holds) {
  const pid_t child = fork();
  if (child == 0) _exit(holds() ? 0 : 1);
  int status = -1;
  waitpid(child, &status, 0);
  return status == 0;
}

void use_up(rlim_t soft, rlim_t hard) {
  const rlimit limit{soft, hard};
  setrlimit(RLIMIT_NOFILE, &limit);
  while (open("/dev/null", O_RDONLY | O_CLOEXEC) >= 0) continue;
}
bool can_open() { return static_cast<bool>(Fd(open("/dev/null", O_RDONLY | O_CLOEXEC))); }
rlim_t soft_limit() {
  rlimit now = {};
  getrlimit(RLIMIT_NOFILE, &now);
  return now.rlim_cur;
}

TEST(DescriptorRoom, ChangesNothingWhereThereIsRoom) {
  const rlim_t before = soft_limit();
  const DescriptorRoom room;
  EXPECT_EQ(soft_limit(), before);
}

TEST(DescriptorRoom, IsMadeAndGivenBack) {
  EXPECT_TRUE(in_a_child([] {
    use_up(64, 1024);
    if (can_open()) return false;
    {
      const DescriptorRoom one;
      const DescriptorRoom other;
      if (!can_open()) return false;
    }
    return !can_open() && soft_limit() == 64;
  }));
}

TEST(DescriptorRoom, BeyondWhatWasOpenBeforeTheLimit) {
  EXPECT_TRUE(in_a_child([] {
    use_up(512, 1024);
    const rlimit lower{32, 1024};
    setrlimit(RLIMIT_NOFILE, &lower);
    const DescriptorRoom room;
    return can_open();
  }));
}

TEST(DescriptorRoom, SaysSoWhereThereIsNone) {
  EXPECT_TRUE(in_a_child([] {
    use_up(64, 64);
    if (geteuid() == 0 && setgid(65534) == 0 && setuid(65534) != 0) return false;
    const DescriptorRoom room;
    return !room.is_there() && !can_open() && soft_limit() == 64;
  }));
}

TEST(DescriptorRoom, WhatTheHostSetsMeanwhileStays) {
  EXPECT_TRUE(in_a_child([] {
    use_up(64, 1024);
    {
      const DescriptorRoom room;
      const rlimit another{100, 1024};
      setrlimit(RLIMIT_NOFILE, &another);
    }
    return soft_limit() == 100;
  }));
}

TEST(DescriptorRoom, AForkedChildHasTheOldLimit) {
  EXPECT_TRUE(in_a_child([] {
    use_up(64, 1024);
    const DescriptorRoom room;
    DescriptorRoom::before_fork();
    const pid_t child = fork();
    DescriptorRoom::after_fork(child == 0);
    if (child == 0) _exit(soft_limit() == 64 && !can_open() ? 0 : 1);
    int status = -1;
    waitpid(child, &status, 0);
    return status == 0 && can_open();
  }));
}

}  // namespace
}  // namespace molt
