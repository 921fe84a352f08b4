#include "base/result.hpp"

#include <gtest/gtest.h>

#include <cerrno>
#include <string>

namespace molt {
namespace {

Result<int> half(int n) {
  if (n % 2) return fail(EINVAL, "%d is odd", n);
  return n / 2;
}

Result<std::string> quarter_text(int n) {
  auto once = half(n);
  if (!once) return pass(once);
  auto twice = half(*once);
  if (!twice) return pass(twice);
  return std::to_string(*twice);
}

Status missing() { return fail_errno(ENOENT, "cannot open %s", "x.so"); }

TEST(result, value) { EXPECT_EQ(*quarter_text(12), "3"); }

TEST(result, error_says_what_and_where) {
  auto result = quarter_text(6);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, EINVAL);
  EXPECT_STREQ(result.error().detail, "3 is odd");
  EXPECT_STREQ(result.error().site, "half");
}

TEST(result, errno_is_explained) {
  Status status = missing();
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ENOENT);
  EXPECT_STREQ(status.error().detail, "cannot open x.so: No such file or directory");
  EXPECT_STREQ(status.error().site, "missing");
}

TEST(result, long_texts_are_cut_off) {
  const std::string text(1000, 'x');
  Error error = fail(E2BIG, "%s", text.c_str()).value();
  EXPECT_EQ(std::string(error.detail), text.substr(0, sizeof error.detail - 1));
  error = fail_errno(E2BIG, "%s", text.c_str()).value();
  EXPECT_EQ(std::string(error.detail), text.substr(0, sizeof error.detail - 1));
  const std::string nearly(sizeof error.detail - 5, 'x');
  error = fail_errno(E2BIG, "%s", nearly.c_str()).value();
  EXPECT_EQ(std::string(error.detail), nearly + ": Ar");
}

TEST(result, errno_names) {
  EXPECT_STREQ(errno_name(EEXIST), "EEXIST");
  EXPECT_STREQ(errno_name(EDEADLK), "EDEADLK");
  EXPECT_STREQ(errno_name(54321), "E?");
  EXPECT_STREQ(errno_name(-1), "E?");
}

TEST(result, unknown_errno) {
  EXPECT_STREQ(fail_errno(54321, "x").value().detail, "x: unknown error");
}

}  // namespace
}  // namespace molt
