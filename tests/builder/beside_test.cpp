#include "builder/beside.hpp"

#include <gtest/gtest.h>

namespace molt::builder {
namespace {

using Texts = std::vector<std::string>;

struct Source {
  std::string before, now;
};

Result<std::vector<Beside>> keep(Source& source, const Texts& types) {
  std::vector<PatchedFile> files = {{"a.c", source.before, source.now}};
  auto kept = keep_beside(files, types);
  if (kept) source.now = *files[0].new_text;
  return kept;
}
std::string error(Source source, const Texts& types = {"a"}) {
  auto kept = keep(source, types);
  return kept ? "" : kept.error().detail;
}
// What becomes of that body, whose lines the diff adds.
std::string body(const std::string& text) {
  Source source{"struct a { int n; };\n", "struct a { int n; char *more; };\n" + text + "\n"};
  auto kept = keep(source, {"a"});
  if (!kept) return kept.error().detail;
  return source.now.substr(source.now.find('\n') + 1);
}
std::string beside(const std::string& object) {
  return "((__typeof__(__extension__ _Generic((" + object +
         "), struct a *: (struct molt_beside_a *) 0, const struct a *: (struct molt_beside_a *) 0, "
         "default: (" +
         object + ") + 0))) __extension__ _Generic((" + object +
         "), struct a *: molt_beside_of_a, const struct a *: molt_beside_of_a, default: "
         "molt_beside_not_a)(" +
         object + "))->more";
}

TEST(Beside, the_definition_stays_and_the_members_are_behind_it) {
  Source source{
      "struct a {\n  int n; // x\n};\nint f;\n",
      "struct a {\n  int n;\n  BIT(more); char *two[3], three; _Atomic(int) four;\n};\nint f;\n"};
  auto kept = keep(source, {"a"});
  ASSERT_TRUE(kept) << kept.error().detail;
  EXPECT_EQ(kept->front().members, (Texts{"more", "two", "three", "four"}));
  EXPECT_EQ(kept->front().file, "a.c");
  EXPECT_EQ(source.now.find("struct a {\n  int n; // x\n/*molt:end*/}; struct molt_beside_a { "
                            "BIT(more); char *two[3], three; _Atomic(int) four; }; extern "),
            0u)
      << source.now;
  EXPECT_TRUE(source.now.ends_with("}\nint f;\n"));
  EXPECT_NE(grown(source.now).find("int n; // x\n char molt_grown[4160]; };"), std::string::npos);
}

TEST(Beside, who_names_a_member_names_what_is_beside) {
  EXPECT_EQ(body("x = p->more;\n"), "x = " + beside("p") + ";\n\n");
  EXPECT_EQ(body("*p . more = 0;"), "*" + beside("&(p)") + " = 0;\n");
  EXPECT_EQ(body("if (!f(1)[2]->b.c -> more)"), "if (!" + beside("f(1)[2]->b.c") + ")\n");
  EXPECT_EQ(body("return (*q)->more"), "return " + beside("(*q)") + "\n");
  EXPECT_EQ(body("more = n->morel + s[p->n].some; /* p->more */ \"p->more\""),
            "more = n->morel + s[p->n].some; /* p->more */ \"p->more\"\n");
  EXPECT_EQ(body("p->more = q->more;"), beside("p") + " = " + beside("q") + ";\n");
  EXPECT_EQ(body("f(g(p->more)->more)"), "f(" + beside("g(" + beside("p") + ")") + ")\n");
  EXPECT_EQ(body("p\n -> // x\n more++; q->more;"), beside("p") + "\n\n++; " + beside("q") + ";\n");
  EXPECT_EQ(body("p->more->more;"), beside(beside("p")) + ";\n");
  EXPECT_EQ(body("if (x) (p)->more = 0;"), "if (x) " + beside("(p)") + " = 0;\n");
  // A call of what f points to, or a cast.
  EXPECT_EQ(body("(*f)(p)->more = 0;"),
            "--beside=a: a.c:2: it is not understood what `more` is a member of there");
  // Lines that were there name a member of something else.
  Source source{"struct a { int n; };\nx = p->more;\n",
                "struct a { int n; char *more; };\nx = p->more;\n"};
  ASSERT_TRUE(keep(source, {"a"}));
  EXPECT_TRUE(source.now.ends_with("\nx = p->more;\n"));
}

std::string made(const std::string& text) {
  const std::string all = body(text);
  // The number is of the members.
  const std::size_t id = all.find(", 0x");
  return id == all.npos ? all : all.substr(0, id) + ", ID" + all.substr(all.find("ul)", id) + 2);
}
std::string sized(const std::string& size, const std::string& object) {
  return "(" + size + " + 0/*molt:made*/ * __extension__ _Generic((" + object +
         "), struct a *: 1, const struct a *: 1, default: 0))";
}

TEST(Beside, where_objects_are_made_is_noted) {
  EXPECT_EQ(made("p = malloc(sizeof(struct a));"),
            "p = molt_beside_born((malloc(" + sized("sizeof(struct a)", "p") + ")), ID);\n");
  EXPECT_EQ(made("struct a *p = (struct a *) x->alloc(1, sizeof( struct  a ));"),
            "struct a *p = (struct a *) molt_beside_born((x->alloc(1, " +
                sized("sizeof( struct  a )", "p") + ")), ID);\n");
  EXPECT_EQ(
      made("struct a *p, *q; q = malloc(sizeof(*q));"),
      "struct a *p, *q; q = molt_beside_born((malloc(" + sized("sizeof(*q)", "q") + ")), ID);\n");
  EXPECT_EQ(made("if (x) **q->r = malloc(sizeof(struct a));"),
            "if (x) **q->r = molt_beside_born((malloc(" + sized("sizeof(struct a)", "**q->r") +
                ")), ID);\n");
  const std::string counted = made("p = calloc(n, sizeof(struct a));");
  EXPECT_NE(counted.find("molt_makes_one_object : __extension__ _Generic((n), default: 1, struct a "
                         "*: -1, const struct a *: -1, int: -1"),
            counted.npos)
      << counted;
  EXPECT_EQ(grown("(sizeof(struct a) + 0/*molt:made*/ * 1)"), "(sizeof(struct a) + 0 - 4160 * 1)");
  // Each of these is found by its code, and refused.
  for (const char* other :
       {"struct b *q; p = malloc(sizeof(*q));", "p = malloc(2 * sizeof(struct a));",
        "memset(p, 0, sizeof(struct a));", "p = realloc(p, sizeof(struct a));",
        "if (x == f(sizeof(struct a))) ;", "n = sizeof(struct a);",
        "p = malloc((sizeof(struct ab)));",
        // No new one, or one that other processes see.
        "p = find_or_alloc(sizeof(struct a));", "p = f(x, sizeof(struct a));",
        "p = alloc_copy(x, sizeof(struct a));", "p = slab_alloc(x, sizeof(struct a));"}) {
    EXPECT_EQ(body(other), std::string(other) + "\n");
  }
}

TEST(Beside, typedefs) {
  Source source{
      "typedef struct a_s a_t;\nstruct a_s { int n; };\n",
      "typedef struct a_s a_t;\nstruct a_s { int n; int more; };\na_t *p = malloc(sizeof(a_t));\n"};
  auto kept = keep(source, {"a_s"});
  ASSERT_TRUE(kept) << kept.error().detail;
  EXPECT_EQ(kept->front().makers, (Texts{"a.c"}));
  Source unnamed{"typedef struct { int n; } a;\n",
                 "typedef struct { int n; int more; } a;\nx = p->more;\n"};
  kept = keep(unnamed, {"a"});
  ASSERT_TRUE(kept) << kept.error().detail;
  EXPECT_NE(unnamed.now.find("_Generic((p), a *: molt_beside_of_a, const a *: molt_beside_of_a"),
            std::string::npos)
      << unnamed.now;
}

TEST(Beside, what_is_refused) {
  EXPECT_EQ(error({"int x;\n", "int y;\n"}),
            "--beside=a: no file of the diff defines it before and after");
  EXPECT_EQ(error({"struct a { int n; };\n", "struct a { int n; };\nint y;\n"}),
            "--beside=a: the diff adds no member to it");
  EXPECT_EQ(error({"union a { int n; };\n", "union a { int n; int m; };\n"}),
            "--beside=a: it is no struct");
  const std::string more =
      "--beside=a: the diff does more to it than to add members: others were changed, moved or "
      "taken away";
  EXPECT_EQ(error({"struct a { int n; };\n", "struct a { long n; int m; };\n"}), more);
  EXPECT_EQ(error({"struct a { int n; char c; };\n", "struct a { char c; int m; int n; };\n"}),
            more);
  EXPECT_EQ(
      error({"struct a { int n; };\n", "struct __attribute__((packed)) a { int n; int m; };\n"}),
      "--beside=a: the diff changes more of it than its members");
  EXPECT_EQ(error({"struct a { int n; char last[1]; };\n",
                   "struct a { int n; int m; char last[1]; };\n"}),
            "--beside=a: it ends with an array, `char last[1]`: objects may be longer than it "
            "says, and nothing tells "
            "where such are made: keep the members by hand (--callbacks)");
  EXPECT_EQ(error({"struct a { int n; };\n", "struct a { int n; int (*f)(int); };\n"}),
            "--beside=a: `int (*f)(int)` is no plain member");
  EXPECT_EQ(error({"struct a { int n; };\nstruct b { int n; };\n",
                   "struct a { int n; int m; };\nstruct b { int n; int m; };\n"},
                  {"a", "b"}),
            "--beside=b: a gets a member `m` too: nothing tells which is meant where");
  EXPECT_EQ(body("int f(struct a *p) { memset(p, 0, offsetof(struct a, n)); }"),
            "--beside=a: a.c:2: a part of it is copied or cleared, and new members would be in it: "
            "keep the members by "
            "hand (--callbacks)");
  EXPECT_EQ(body("struct option o = { 1, offsetof(struct a, n) };"),
            "struct option o = { 1, offsetof(struct a, n) };\n");
  EXPECT_EQ(body("struct a x = { .more = 0 };"),
            "--beside=a: a.c:2: it is not understood what `more` is a member of there");
}

}  // namespace
}  // namespace molt::builder
