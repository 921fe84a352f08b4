// P7. A write of code fails where it cannot, with the function's entry neither as it was nor as it was to be, and so
// does each that would take it back: what was in force stays, nothing else is done, and it can be seen from outside.
//
// This program's own pwrite() and mremap() stand in for the system's.

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <molt/host.hpp>
#include <thread>
#include <vector>

#include "hooked.hpp"
#include "patching.hpp"
#include "targets.hpp"

namespace {

// Writes to the entry of lp_answer that succeed; then no code is written any more. -1: all succeed.
std::atomic<int> writes_left{-1};

bool fails(off_t at) {
  if (writes_left < 0) return false;
  const auto entry = reinterpret_cast<off_t>(&lp_answer);
  if (writes_left > 0 && at >= entry && at < entry + 8)
    --writes_left;
  else if (writes_left == 0)
    return errno = EIO, true;
  return false;
}

molt::hook<lp_point> on_point;

// What the command line says of this process, with this verb.
std::string molt_says(const std::string& verb) {
  const std::string command = std::string(std::getenv("MOLT_BIN")) + "/molt " + verb + " 2>&1";
  FILE* out = popen(command.c_str(), "re");
  std::string text, line(256, '\0');
  while (std::fgets(line.data(), static_cast<int>(line.size()), out) != nullptr) {
    text += line.c_str();
  }
  pclose(out);
  return text;
}

}  // namespace

extern "C" {
__attribute__((visibility("default"))) ssize_t pwrite(int fd, const void* bytes, size_t size,
                                                      off_t at) {
  return fails(at) ? -1 : syscall(SYS_pwrite64, fd, bytes, size, at);
}
__attribute__((visibility("default"))) void* mremap(void* old, size_t old_size, size_t size,
                                                    int flags, ...) {
  if (fails(0)) return MAP_FAILED;
  std::va_list rest;
  va_start(rest, flags);
  void* to = (flags & MREMAP_FIXED) != 0 ? va_arg(rest, void*) : nullptr;
  va_end(rest);
  return reinterpret_cast<void*>(syscall(SYS_mremap, old, old_size, size, flags, to));
}
}

namespace {

TEST(Poison, WhatIsInForceStaysAndNothingElseIsDone) {
  ASSERT_EQ(molt::start("poisoned"), 0) << molt_last_error();
  const std::string pid = std::to_string(getpid());
  ASSERT_EQ(load_patch("lp_hooked"), 0) << molt_last_error();
  ASSERT_EQ(apply("lp_three", "answer=0 nested=1"), "");
  ASSERT_EQ(on_point(1), 101);
  ASSERT_EQ(lp_outer(2), 3);

  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back([&] {
      while (!stop) {
        if (lp_answer(40) != 41 || lp_outer(2) != 3 || on_point(1) != 101) ++wrong;
        std::this_thread::yield();
      }
    });
  }

  // int3 and the tail of the jump are written; its first byte is not, nor anything that comes after.
  writes_left = 2;
  EXPECT_EQ(load_patch("lp_two"), -EIO) << molt_last_error();
  const std::string reason = "can be written no more";
  EXPECT_EQ(lp_answer(40), 41);

  const auto refused = [&](int code) {
    return code == -ENOTRECOVERABLE &&
           std::string(molt_last_error()).find(reason) != std::string::npos;
  };
  writes_left = -1;  // that it would work again is of no use
  EXPECT_TRUE(refused(load_patch("lp_four"))) << molt_last_error();
  EXPECT_TRUE(refused(molt_patch_set_enabled("lp_three", 0))) << molt_last_error();
  EXPECT_TRUE(refused(molt_unload("lp_hooked", 0, -1))) << molt_last_error();
  EXPECT_TRUE(refused(molt_disable("lp_hooked"))) << molt_last_error();
  EXPECT_TRUE(refused(molt_hook_set_order("lp/point", "lp_hooked"))) << molt_last_error();

  EXPECT_NE(molt_says("ps").find("poisoned: the entry"), std::string::npos) << molt_says("ps");
  // What may lead to its code is not known.
  const std::string list = molt_says("list -p " + pid);
  EXPECT_NE(list.find("resident  molt stopped operating"), std::string::npos) << list;
  EXPECT_NE(molt_says("doctor " + pid).find("cannot be changed: Molt stopped operating"),
            std::string::npos);
  EXPECT_NE(molt_says("gc -p " + pid).find(reason), std::string::npos) << molt_says("gc -p " + pid);
  EXPECT_NE(molt_says("revert lp_three -p " + pid).find("restart it when you can"),
            std::string::npos);

  // A child has the same entry.
  const pid_t child = fork();
  if (child == 0) {
    _exit(lp_answer(40) == 41 && lp_outer(2) == 3 && on_point(1) == 101 &&
                  refused(load_patch("lp_four"))
              ? 0
              : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);

  stop = true;
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(lp_answer(40), 41);
}

}  // namespace
