#include "builder/line_guard.hpp"

#include <gtest/gtest.h>

namespace molt::builder {
namespace {

TEST(LineGuard, keeps_the_numbers_behind_a_hunk) {
  const std::string before = "int a() {\n  return 1;\n}\n\nint b() {\n  return __LINE__;\n}\n";
  const std::string after =
      "int a() {\n  int x = 1;\n  return x;\n}\n\nint b() {\n  return __LINE__;\n}\n";
  const Guarded guarded = guard_lines(before, after);
  EXPECT_EQ(guarded.directives, 1u);
  EXPECT_EQ(
      guarded.text,
      "int a() {\n  int x = 1;\n  return x;\n}\n#line 4\n\nint b() {\n  return __LINE__;\n}\n");
  EXPECT_EQ(guarded.hunks, "@@ -2,1 +2,2 @@\n-  return 1;\n+  int x = 1;\n+  return x;\n");
}

TEST(LineGuard, leaves_alone_what_keeps_its_numbers) {
  const std::string before = "int a() {\n  return 1;\n}\nint b;\n";
  const std::string after = "int a() {\n  return 2;\n}\nint b;\n";
  EXPECT_EQ(guard_lines(before, after).text, after);
  EXPECT_EQ(guard_lines(before, before).directives, 0u);
}

TEST(LineGuard, one_directive_for_each_hunk_that_moves_lines) {
  std::string before;
  std::string after;
  for (int i = 0; i < 50; ++i) {
    const std::string body = "int f" + std::to_string(i) + "() {\n  return 1;\n}\n";
    before += body;
    after += body;
    if (i == 10 || i == 30) after.insert(after.size() - 2, "  more();\n");
  }
  EXPECT_EQ(guard_lines(before, after).directives, 2u);
}

TEST(LineGuard, counts_the_directives_of_the_source) {
  const std::string before = "#line 100 \"x.y\"\nint a() {\n}\nint b;\nint c;\n";
  const std::string after = "#line 100 \"x.y\"\nint z;\nint a() {\n}\nint b;\nint c;\n";
  EXPECT_EQ(guard_lines(before, after).text,
            "#line 100 \"x.y\"\nint z;\nint a() {\n}\n#line 102\nint b;\nint c;\n");
}

TEST(LineGuard, not_inside_of_comments_strings_and_macros) {
  const std::string tail = "/*\n}\ntext\n*/\nauto s = R\"x(\n}\ntext\n)x\";\n";
  const Guarded guarded = guard_lines("int a;\n" + tail, "int a;\nint more;\n" + tail);
  EXPECT_EQ(guarded.directives, 0u);
  // A quote in a comment, and an apostrophe in a number, begin nothing.
  const std::string plain = "// it's\nint n = 1'000;\nint f() {\n}\nint g;\n";
  EXPECT_EQ(guard_lines("int a;\n" + plain, "int a;\nint more;\n" + plain).directives, 1u);
}

TEST(LineGuard, removed_lines_too_and_a_file_without_a_last_newline) {
  const std::string before = "int x;\nint y;\nvoid f() {\n}\nint z;";
  const std::string after = "int y;\nvoid f() {\n}\nint z;";
  EXPECT_EQ(guard_lines(before, after).text, "int y;\nvoid f() {\n}\n#line 5\nint z;");
}

}  // namespace
}  // namespace molt::builder
