#include "builder/leave_out.hpp"

#include "builder/c_text.hpp"

#include <gtest/gtest.h>

namespace molt::builder {
namespace {

std::vector<std::string> found(std::string_view text, std::string_view name) {
  std::vector<std::string> texts;
  for (const TextRange& r : definitions_of(text, name)) {
    texts.emplace_back(text.substr(r.begin, r.end - r.begin));
  }
  return texts;
}
using Texts = std::vector<std::string>;

TEST(LeaveOut, definitions_and_what_only_looks_like_one) {
  EXPECT_EQ(found("struct a { int x; struct { int y; } z; };\n", "a"),
            Texts{"struct a { int x; struct { int y; } z; }"});
  EXPECT_EQ(found("struct a;\nstruct a *f(struct a *p) { return p; }\nstruct a x = {1};\n", "a"),
            Texts{});
  EXPECT_EQ(found("struct f g(int a) { return a; }\n", "g"), Texts{});
  EXPECT_EQ(found("// struct a { int x; };\n/* struct a {} */ char s[] = \"struct a {\";\n", "a"),
            Texts{});
  EXPECT_EQ(found("#define T struct a { \\\n int x; }\n", "a"), Texts{});
  EXPECT_EQ(found("struct a { int x; /* } */ char c[2]; // }\n};\n", "a"),
            Texts{"struct a { int x; /* } */ char c[2]; // }\n}"});
  EXPECT_EQ(found("struct ab { int x; }; struct b { struct a *p; };\n", "a"), Texts{});
}

TEST(LeaveOut, definitions_of_typedefs_classes_and_attributes) {
  EXPECT_EQ(found("typedef struct { int x; } a;\n", "a"), Texts{"struct { int x; }"});
  EXPECT_EQ(found("typedef struct tag { int x; } a;\n", "a"), Texts{"struct tag { int x; }"});
  EXPECT_EQ(found("struct { int x; } a;\n", "a"), Texts{});
  EXPECT_EQ(found("struct __attribute__((packed)) a { int x; };\n", "a").size(), 1u);
  EXPECT_EQ(found("struct ALIGNED a { int x; };\n", "a").size(), 1u);
  EXPECT_EQ(found("class a final : public b<int>, c { int x; };\n", "a").size(), 1u);
  EXPECT_EQ(found("enum class a : char { x };\n", "a"), Texts{"enum class a : char { x }"});
  EXPECT_EQ(found("int n = 1'000; char q = '\\''; struct a { int x; };\n", "a").size(), 1u);
  EXPECT_EQ(found("char s[] = R\"x(\" struct a { )x\"; struct a { int x; };\n", "a").size(), 1u);
}

PatchedFile file(std::string path, std::string before, std::string now) {
  return {std::move(path), std::move(before), std::move(now)};
}

TEST(LeaveOut, a_type_stays_as_it_was_and_the_rest_of_its_file_does_not) {
  std::vector<PatchedFile> files = {
      file("a.h", "struct a { long n; };\nint f(void);\n", "struct a { int n; };\nint g(void);\n"),
      file("b.c", "int x;\n", "int y;\n")};
  const auto notes = leave_out(files, {"a"});
  ASSERT_TRUE(notes);
  EXPECT_EQ(*notes, Texts{"a.h: a stays as it is; what the diff does to it is left out"});
  EXPECT_EQ(*files[0].new_text, "struct a { long n; };\nint g(void);\n");
  EXPECT_EQ(*files[1].new_text, "int y;\n");
}

TEST(LeaveOut, a_file_and_a_name_with_a_scope) {
  std::vector<PatchedFile> files = {file("lib/a.h", "1\n", "2\n"),
                                    file("b.h", "namespace n { struct a { long n; }; }\n",
                                         "namespace n { struct a { int n; }; } int z;\n")};
  ASSERT_TRUE(leave_out(files, {"lib/a.h", "n::a"}));
  EXPECT_EQ(files[0].new_text, files[0].old_text);
  EXPECT_EQ(*files[1].new_text, "namespace n { struct a { long n; }; } int z;\n");
}

TEST(LeaveOut, nothing_by_halves) {
  std::vector<PatchedFile> files = {file(
      "a.h", "struct a { int n; };\nstruct b { int n; };\n",
      "struct a { int n; };\n#if X\nstruct b { int n; };\n#else\nstruct b { long n; };\n#endif\n")};
  EXPECT_FALSE(leave_out(files, {"nowhere"}));
  EXPECT_FALSE(leave_out(files, {"a"})) << "the diff does not change it";
  EXPECT_FALSE(leave_out(files, {"b"})) << "which of the two?";
  EXPECT_FALSE(leave_out(files, {"a.h"})) << "nothing of the diff is left";
}

}  // namespace
}  // namespace molt::builder
