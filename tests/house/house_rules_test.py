"""Each rule of tools/house_rules.py finds what it is for, and nothing else."""
import unittest

from scratch import run

# Put together, so that this file keeps the rules it plants violations of.
KILL, UNDONE, NAP = "p" + "kill", "TO" + "DO", "sl" + "eep"

REFUSED = [
    ("order", "src/a.cpp", "int f() { return n.load(); }"),
    ("order", "src/a.cpp", "void f() { n.store(1); }"),
    ("order", "src/a.cpp", "void f() { p->store(g(1, 2)[0]); }"),
    ("order", "src/a.cpp", 'auto s = R"(")"; int x = n.load();'),
    ("order", "src/a.cpp", "void f() { n.fetch_add(1); }"),
    ("order", "src/a.cpp", "void f() {\n  n.compare_exchange_strong(\n      a,\n      b);\n}"),
    ("order", "include/molt/a.hpp", "int f() { return n->load( ); }"),
    ("include", "src/a/b.cpp", '#include "../c/d.hpp"'),
    ("length", "src/a.cpp", "\n" * 901),
    ("kill", "tools/a.sh", f"{KILL} -f molt"),
    ("undone", "docs/a.md", f"{UNDONE}: write this"),
    (NAP, "tests/a.cpp", f"void f() {{ u{NAP}(10); }}"),
    (NAP, "tests/a.cpp", f"void f() {{ std::this_thread::{NAP}_for(1ms); }}"),
    (NAP, "tests/a.sh", f"{NAP} 1"),
    (NAP, "tests/a.sh", f"while true; do {NAP} 0.1; done"),
    (NAP, "tests/a.py", f"time.{NAP}(1)"),
    (NAP, "tests/a.cpp", f"{NAP}(1);  // tidy: {NAP}-ok"),  # no reason given
    ("skip", "tests/a.cpp", "TEST(A, b) { GTEST_SKIP()" + "; }"),
]

ALLOWED = [
    ("src/a.cpp", "int f() { return n.load(std::memory_order_acquire); }"),
    ("src/a.cpp", "void f(std::memory_order order) { n.store(1, order); }"),
    ("src/a.cpp", "void f() { n.fetch_add(g(1),\n              std::memory_order_relaxed); }"),
    ("src/a.cpp", "void f() { loader.load(path); a = std::exchange(b, 1); box.store(key, value); }"),
    ("src/a.cpp", "// n.load() would be wrong here\nconst char* s = \"n.load()\";"),
    ("src/a.cpp", 'auto s = R"x(a " n.load() )" )x";'),
    ("src/a.cpp", "\n" * 900),
    ("tests/a.cpp", f"{NAP}(1);  // tidy: {NAP}-ok the victim has to be asleep"),
    ("tests/a.cpp", f"// tidy: {NAP}-ok the victim has to be asleep\n{NAP}(1);"),
    ("tests/a.cpp", f"// threads that {NAP} (a while) in it\nint as{NAP}(int);"),
    ("tests/a.cpp", 'TEST(A, b) { GTEST_SKIP() << "no perf events here"; }'),
    ("bench/a.cpp", f"{NAP}(1);"),
]


class HouseRules(unittest.TestCase):
    def test_refused(self):
        for rule, path, text in REFUSED:
            with self.subTest(rule=rule, text=text[:80]):
                code, lines = run("house_rules.py", {path: text})
                self.assertEqual(code, 1, lines)
                self.assertEqual([line.split(": ")[1] for line in lines], [rule])

    def test_allowed(self):
        for path, text in ALLOWED:
            with self.subTest(text=text[:80]):
                self.assertEqual(run("house_rules.py", {path: text}), (0, []))

    def test_line_number(self):
        _, lines = run("house_rules.py", {"src/a.cpp": "/* a\nb */\nint x = n.load();\n"})
        self.assertTrue(lines[0].startswith("src/a.cpp:3: "), lines)


if __name__ == "__main__":
    unittest.main()
