#!/usr/bin/env python3
"""Identity: objects of two compilers, through three linkers, in every kind of file, are found again in
what was linked of them, byte for byte; and objects of anything else are not."""
import itertools
import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

REPORT = str(Path(os.environ["MOLT_BIN"]) / "placement_report")

ONE = """\
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
extern __thread int shared_tls;
__thread int own_tls = 7;
static __thread int static_tls;
static __thread long zero_tls[8];
extern int other(int);
extern const char *names[];
int weak_one(void) __attribute__((weak));
int weak_two(void) __attribute__((weak));
int weak_two(void) { return 2; }
static int counter = 5;
static const int squares[] = {0, 1, 4, 9, 16, 25};
static int __attribute__((noinline)) step(int x) { return counter += x * squares[x & 3]; }
static int __attribute__((noinline)) pick(int x) {
  switch (x) {
    case 0: return step(1);
    case 1: return other(2);
    case 2: return puts("two") + 3;
    case 3: return errno + 9;
    case 4: return own_tls++ * 11;
    case 5: return static_tls++ - shared_tls;
    case 6: return weak_one ? weak_one() : weak_two();
    case 7: return (int)(zero_tls[x]++ * 3);
    default: return -x;
  }
}
static int (*const table[])(int) = {step, pick, other};
double __attribute__((noinline)) ratio(double x) { return x * 1.75 + 0.125; }
void *keep(int x) { return x ? (void *)table[x % 3] : (void *)&names[1]; }
int entry(int argc, char **argv) {
  int sum = 0;
  for (int i = 0; i < 8; ++i) sum += pick(i + argc - 1);
  if (argc > 3) abort();
  fprintf(stderr, "%d %f %s %p\\n", sum, ratio(argc), names[argc % 2], keep(argc));
  return table[argc % 3](argc) == 12345 && argv != 0;
}
"""
TWO = """\
__thread int shared_tls = 3;
static int counter = 50;
int common_one;
const char *names[] = {"first name", "second name"};
static int __attribute__((noinline)) step(int x) { return counter -= x; }
int other(int x) { return step(x) + common_one++; }
"""
MAIN = "int entry(int, char **);\nint main(int argc, char **argv) { return entry(argc, argv); }\n"
CXX = """\
#include <map>
#include <stdexcept>
#include <string>
#include <vector>
struct Shape {
  virtual ~Shape() = default;
  virtual int area() const { return 1; }
};
struct Square : Shape {
  explicit Square(int s) : side(s) {}
  int area() const override { return side * side; }
  int side;
};
thread_local std::string last = "none";
template <class T>
T __attribute__((noinline)) largest(const std::vector<T>& all) {
  if (all.empty()) throw std::runtime_error("empty");
  T best = all[0];
  for (const T& one : all) best = best < one ? one : best;
  return best;
}
static int __attribute__((noinline)) guarded(int x) {
  static std::map<int, std::string> cache;
  try {
    cache[x] = std::to_string(largest(std::vector<int>{x, 2 * x}));
    if (x == 13) largest(std::vector<double>{});
  } catch (const std::exception& error) {
    last = error.what();
  }
  auto twice = [x](int y) { return x * y + 3; };
  return twice(static_cast<int>(cache.size()));
}
int entry_cxx(int x) {
  const Square square(x);
  const Shape& shape = square;
  return guarded(x) + shape.area();
}
"""
CXX_MAIN = "int entry_cxx(int);\nint main(int argc, char**) { return entry_cxx(argc); }\n"


def run(*words, cwd):
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, words))}: {done.stderr}")


def report(binary, *objects):
    done = subprocess.run([REPORT, binary, "-v", *objects], capture_output=True, text=True, timeout=60, check=False)
    counts = dict(re.findall(r"([a-z]+) (\d+)", done.stdout.splitlines()[-1])) if done.stdout else {}
    return {key: int(value) for key, value in counts.items()}, done.stdout + done.stderr


class Identity(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="molt-identity-"))
        self.addCleanup(shutil.rmtree, self.folder)
        for name, text in (("one.c", ONE), ("two.c", TWO), ("main.c", MAIN), ("cxx.cc", CXX), ("main_cxx.cc", CXX_MAIN)):
            (self.folder / name).write_text(text)

    def compile(self, compiler, flags, *sources):
        objects = []
        for source in sources:
            target = self.folder / (source + ".o")
            run(compiler, "-g1", *flags, "-c", source, "-o", target, cwd=self.folder)
            objects.append(target)
        return objects

    def check(self, what, binary, objects, units, absent=0):
        counts, text = report(binary, *objects)
        with self.subTest(what=what):
            self.assertEqual(counts["absent"], absent, text)
            self.assertEqual(counts["proven"] + counts["discarded"] + absent, counts["functions"], text)
            self.assertEqual((counts["differs"], counts["shared"], counts["units"]), (0, 0, units), text)

    def test_c(self):
        kinds = (
            ("pie", ["-fPIE"], ["-pie"]),
            ("no-pie", ["-fno-pie"], ["-no-pie"]),
            ("static", ["-fno-pie"], ["-static"]),
            ("no-plt", ["-fPIE", "-fno-plt"], ["-pie", "-Wl,-z,now"]),
            ("shared", ["-fPIC"], ["-shared"]),
            ("sections", ["-fPIE", "-ffunction-sections", "-fdata-sections"], ["-pie", "-Wl,--gc-sections"]),
        )
        compilers = [("gcc", ["-O2"]), ("gcc", ["-O0", "-fcf-protection"]), ("gcc", ["-O3", "-fcommon"]), ("clang", ["-O2"])]
        linkers = ["bfd", "gold", "lld"]
        for number, ((compiler, level), (kind, flags, link)) in enumerate(itertools.product(compilers, kinds)):
            # Every pair of a compiler and a kind, each with another linker; all of them with -O2.
            for linker in linkers if (compiler, level) == ("gcc", ["-O2"]) else linkers[number % 3 :][:1]:
                if not shutil.which(f"ld.{linker}"):
                    continue
                objects = self.compile(compiler, [*level, *flags], "one.c", "two.c", "main.c")
                binary = self.folder / "linked"
                run(compiler, f"-fuse-ld={linker}", *link, "-o", binary, *objects, cwd=self.folder)
                # keep() has become part of its only caller, and the linker leaves it out.
                absent = 1 if kind == "sections" and level[0] != "-O0" else 0
                self.check((compiler, level, kind, linker), binary, objects, 3, absent)

    def test_descriptors_of_thread_local_variables(self):
        for flags, link in ((["-fPIC"], ["-shared"]), (["-fPIC"], ["-pie"])):
            objects = self.compile("gcc", ["-O2", "-mtls-dialect=gnu2", *flags], "one.c", "two.c", "main.c")
            run("gcc", *link, "-o", "linked", *objects, cwd=self.folder)
            self.check(("descriptors", link), self.folder / "linked", objects, 3)

    def test_cxx(self):
        for compiler, level in (("g++", "-O2"), ("g++", "-O0"), ("clang++", "-O2")):
            for flags, link in ((["-fPIE"], ["-pie"]), (["-fPIC"], ["-shared"])):
                objects = self.compile(compiler, [level, *flags], "cxx.cc", "main_cxx.cc")
                run(compiler, *link, "-o", "linked", *objects, cwd=self.folder)
                self.check((compiler, level, link), self.folder / "linked", objects, 2)

    def test_stripped(self):
        objects = self.compile("gcc", ["-O2", "-fPIE"], "one.c", "two.c", "main.c")
        run("gcc", "-pie", "-s", "-o", "linked", *objects, cwd=self.folder)
        # main() is one jump, which could be any.
        self.check("stripped", self.folder / "linked", objects, 2)

    def test_whatever_differs_is_seen(self):
        """The negative control: one thing changed in the object, and the function that has it is named."""
        objects = self.compile("gcc", ["-O2", "-fPIE"], "one.c", "two.c", "main.c")
        run("gcc", "-pie", "-o", "linked", *objects, cwd=self.folder)
        changes = (
            ("an instruction", "one.c", ONE, ("x * squares", "x - squares"), ("step", "pick")),
            ("a constant in the code", "one.c", ONE, ("* 11", "* 13"), ("pick",)),
            ("a text", "one.c", ONE, ('"two"', '"too"'), ("pick",)),
            ("a floating constant", "one.c", ONE, ("1.75", "1.5"), ("ratio",)),
            ("read-only data", "one.c", ONE, ("16, 25}", "17, 25}"), ("squares", ".rodata")),
            ("a table of functions", "one.c", ONE, ("{step, pick, other}", "{pick, step, other}"), ("table", ".data.rel.ro")),
            ("another function of the same shape", "one.c", ONE, ("return other(2)", "return abs(2)"), ("pick",)),
            ("another thread-local variable", "one.c", ONE, ("return static_tls++ - shared_tls", "return own_tls++ - shared_tls"), ("pick",)),
        )
        for what, source, text, (old, new), names in changes:
            with self.subTest(what=what):
                self.assertIn(old, text)
                (self.folder / source).write_text(text.replace(old, new))
                changed = self.compile("gcc", ["-O2", "-fPIE"], "one.c", "two.c", "main.c")
                _, said = report(self.folder / "linked", *changed)
                first = said.splitlines()
                refused = [line for line in first if line.startswith("bytes_differ")]
                self.assertTrue(refused, said)
                self.assertTrue(any(name in line for line in refused for name in names), said)


if __name__ == "__main__":
    unittest.main(verbosity=2)
