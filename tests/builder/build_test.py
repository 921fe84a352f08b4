#!/usr/bin/env python3
"""`molt build`: capture with several build tools, the user's tree left alone, what is refused and why, and
a patch applied to the program that was built."""
import ctypes
import difflib
import errno
import fcntl
import json
import os
import shutil
import struct
import subprocess
import tempfile
import threading
import unittest
from pathlib import Path

MOLT = str(Path(os.environ["MOLT_BIN"]) / "molt")

MAIN = """\
#include <assert.h>
#include <stdio.h>
int answer(int);
static int calls;
static int __attribute__((noinline)) count(int by) {
  calls += by;
  return calls;
}
int main(void) {
  char line[16];
  puts("ready");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    printf("%d %d\\n", answer(5), count(1));
    fflush(stdout);
  }
  return 0;
}
"""
ANSWER = """\
#include <assert.h>
#include "scale.h"
static int calls;
static int __attribute__((noinline)) count(int by) {
  calls += by;
  return calls;
}
int answer(int x) {
  assert(x > 0);
  return count(x) * SCALE;
}
int __attribute__((noinline)) later(int x) {
  assert(x > 1);
  return x * 7;
}
int (*volatile keep)(int) = later;
"""
DEBIAN_RULES = """\
#!/usr/bin/make -f
build build-arch:
\t$(MAKE)
binary binary-arch: build
\tmkdir -p debian/prog/usr/bin debian/prog/DEBIAN
\tcp prog debian/prog/usr/bin/
\tstrip debian/prog/usr/bin/prog
\tdpkg-gencontrol -Pdebian/prog
\tdpkg-deb --root-owner-group --build debian/prog ..
clean:
\trm -rf debian/prog *.o prog
.PHONY: build build-arch binary binary-arch clean
"""
COUNTERS = """\
#ifndef SLOTS
#define SLOTS 4
#endif
struct counters {
  long used; /* times { */
  char slots[SLOTS];
  char *name;
};
"""
COUNTING = """\
#include <stdlib.h>
#include "scale.h"
static struct counters *c;
int answer(int x) {
  if (!c) c = calloc(1, sizeof *c);
  c->used += x / 5;
  return c->used;
}
"""
BOXES = """\
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include "scale.h"
static struct box *boxes[10];
static struct box *make(int key) {
  struct box *b;
  b = malloc(sizeof(*b));
  b->key = key;
  b->used = 0;
  return b;
}
struct mark { char by; } last;
static void __attribute__((noinline)) use(struct box *b, const char *who) {
  if (*who) b->used++;
}
static void __attribute__((noinline)) show(const struct box *b) {
  printf("%d:%ld\\n", b->key, b->used);
}
void command(const char *line) {
  int i = line[1] - '0';
  if (line[0] == '+') { free(boxes[i]); boxes[i] = make(i); }
  if (line[0] == 'u') use(boxes[i], line + 2);
  show(boxes[i]);
}
"""
COMMANDS = """\
#include <stdio.h>
void command(const char *line);
int main(void) {
  static char line[16];
  while (fgets(line, sizeof line, stdin)) {
    command(line);
    fflush(stdout);
  }
  return 0;
}
"""
MAKEFILE = """\
CFLAGS = -g -O2
prog: main.o answer.o
\t$(CC) $(CFLAGS) $(LDFLAGS) -o $@ main.o answer.o
main.o: main.c
answer.o: answer.c scale.h
"""


def run(*words, cwd=None, timeout=300, **options):
    return subprocess.run([*map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=timeout, **options)


class Tree(unittest.TestCase):
    """A small source tree, its program, and a cache of its own."""

    build = ["make", "-s"]

    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="molt-build-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.tree = self.folder / "tree"
        self.tree.mkdir()
        self.environment = dict(os.environ, XDG_CACHE_HOME=str(self.folder / "cache"), CCACHE_DISABLE="1")
        for variable in ("CC", "CFLAGS", "MAKEFLAGS", "LD_PRELOAD"):
            self.environment.pop(variable, None)
        self.write("main.c", MAIN)
        self.write("answer.c", ANSWER)
        self.write("scale.h", "#define SCALE 2\n")
        self.write("Makefile", MAKEFILE)

    def write(self, name, text):
        path = self.tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def make_target(self, command=None, program="prog"):
        """Builds in a copy that lies where the tree does, as whoever packaged the program had it."""
        copy = self.folder / "packaged"
        shutil.copytree(self.tree, copy)
        script = 'mount --bind "$1" "$2" && cd "$2" && shift 2 && exec "$@"'
        done = run(
            "unshare", *([] if os.getuid() == 0 else ["--user", "--map-root-user"]), "--mount",
            "sh", "-c", script, "sh", copy, self.tree, *(command or self.build), env=self.environment,
        )  # fmt: skip
        if "unshare failed" in done.stderr:
            self.skipTest("no mount namespace is permitted here")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.target = copy / program
        return self.target

    def diff(self, **edits):
        """edits: file name with _ for the dot, and a function of its text."""
        text = ""
        for key, edit in edits.items():
            name = key[::-1].replace("_", ".", 1)[::-1]
            path = self.tree / name
            old = path.read_text() if path.exists() else ""
            new = edit(old)
            text += "".join(
                difflib.unified_diff(
                    old.splitlines(True), new.splitlines(True), f"a/{name}" if path.exists() else "/dev/null", f"b/{name}"
                )
            )
        path = self.folder / "fix.patch"
        path.write_text(text)
        return path

    def molt_build(self, diff, *options, command=None):
        done = run(
            MOLT, "build", "--json", "--diff", diff, "--target", self.target,
            *([] if "-o" in options else ["-o", self.folder / "fix.molt"]), *options, "--", *(command or self.build), cwd=self.tree, env=self.environment,
        )  # fmt: skip
        said = json.loads(done.stdout) if done.stdout.startswith("{") else {}
        return done, said

    def assert_built(self, done, said, *names):
        self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
        # gcc may have made count.constprop.0 of count.
        found = [function["name"].split(".")[0] for function in said["functions"]]
        self.assertEqual(found, list(names), said)

    def assert_refused(self, done, said, kind, *words):
        self.assertEqual(done.returncode, 5, done.stderr + done.stdout)
        texts = [refusal["text"] for refusal in said["refusals"] if refusal["kind"] == kind]
        self.assertTrue(texts, said)
        for word in words:
            self.assertTrue(any(word in text for text in texts), (word, texts))


DOUBLE = ("count(x) * SCALE", "count(x) * SCALE + 1000")


class Building(Tree):
    def test_applied_to_the_running_program_and_taken_back(self):
        self.make_target()
        before = {path: path.stat().st_mtime_ns for path in self.tree.rglob("*")}
        done, said = self.molt_build(self.diff(answer_c=lambda text: text.replace(*DOUBLE)))
        self.assert_built(done, said, "answer")
        # The user's tree is as it was, to the file.
        self.assertEqual(before, {path: path.stat().st_mtime_ns for path in self.tree.rglob("*")})

        process = subprocess.Popen([self.target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.addCleanup(process.wait)
        self.addCleanup(process.stdin.close)
        self.addCleanup(process.stdout.close)

        def ask():
            process.stdin.write("\n")
            return process.stdout.readline().split()

        self.assertEqual(process.stdout.readline(), "ready\n")
        self.assertEqual(ask(), ["10", "1"])
        patch = self.folder / "fix.molt"
        for where in (["-p", process.pid], ["--target", self.target], []):
            checked = run(MOLT, "check", patch, *where)
            self.assertEqual((checked.returncode, checked.stderr), (0, ""))
        for where in (["-p", os.getpid()], ["--target", MOLT]):
            checked = run(MOLT, "check", patch, *where)
            self.assertEqual(checked.returncode, 5)
            self.assertIn("has none of the files", checked.stderr)
        applied = run(MOLT, "apply", self.folder / "fix.molt", "-p", process.pid)
        self.assertEqual(applied.returncode, 0, applied.stderr)
        # The static counters of both units go on; the fix is there.
        self.assertEqual(ask(), ["1020", "2"])
        checked = run(MOLT, "check", patch, "-p", process.pid)
        self.assertEqual(checked.returncode, 5)
        self.assertIn("answer: its code in process", checked.stderr)
        reverted = run(MOLT, "revert", "fix", "-p", process.pid)
        self.assertEqual(reverted.returncode, 0, reverted.stderr)
        self.assertEqual(ask(), ["30", "3"])

    def test_whose_fix_it_is(self):
        self.make_target()
        diff = self.diff(answer_c=lambda text: text.replace(*DOUBLE).replace("x * 7", "x * 8"))
        diff.write_text(
            "From: Jane Doe <jane@example.org>\nSubject: [PATCH] answer: more (CVE-2026-1111)\n\n"
            "Signed-off-by: Jane Doe <jane@example.org>\n---\n" + diff.read_text()
        )
        done, said = self.molt_build(diff, "--signed-off-by", "John Roe <john@example.org>", "--keep-old=later", "--keep-old=sooner")
        self.assert_built(done, said, "answer")
        info = json.loads(run(MOLT, "info", "--json", self.folder / "fix.molt").stdout)
        self.assertEqual(info["description"], "answer: more (CVE-2026-1111)")
        self.assertEqual(info["author"], "Jane Doe <jane@example.org>")
        self.assertEqual(info["signed-off-by"], ["Jane Doe <jane@example.org>", "John Roe <john@example.org>"])
        self.assertEqual(info["cve"], ["CVE-2026-1111"])
        self.assertRegex(info["source"][0], "^answer.c [0-9a-f]{32}$")
        self.assertEqual(
            info["note"], ["later stays as it was, as the author says", "--keep-old=sooner: no function of that name changed"]
        )
        self.assertRegex(info["functions"][0]["old_hash"] + info["functions"][0]["new_hash"], "^[0-9a-f]{64}$")
        # What the command line says takes the place of what the diff does.
        done, said = self.molt_build(diff, "--description", "more", "--cve", "CVE-2026-2222")
        self.assertEqual(done.returncode, 0, done.stderr)
        info = json.loads(run(MOLT, "info", "--json", self.folder / "fix.molt").stdout)
        self.assertEqual((info["description"], info["cve"]), ("more", ["CVE-2026-2222"]))

    def test_tools_that_show_code(self):
        """readelf and objdump read the file; gdb and perf name the functions of the running process."""
        self.make_target()
        done, said = self.molt_build(self.diff(answer_c=lambda text: text.replace(*DOUBLE)), "--cve", "CVE-1-1")
        self.assert_built(done, said, "answer")
        patch = self.folder / "fix.molt"
        for words, found in (
            (["readelf", "-SW"], ".text.answer"), (["readelf", "-sW"], "answer"), (["readelf", "-p", ".molt.info"], "cve=CVE-1-1"),
            (["objdump", "-dr", "--section=.text.answer"], "R_X86_64_"),
        ):  # fmt: skip
            read = run(*words, patch)
            self.assertEqual((read.returncode, read.stderr), (0, ""), words)
            self.assertIn(found, read.stdout)
        process = subprocess.Popen(
            [self.target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=dict(os.environ, MOLT_PERF_MAP="1")
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.stdin.close)
        self.addCleanup(process.stdout.close)
        self.assertEqual(process.stdout.readline(), "ready\n")
        applied = run(MOLT, "apply", patch, "-p", process.pid)
        self.assertEqual(applied.returncode, 0, applied.stderr)
        names = Path(f"/tmp/perf-{process.pid}.map")
        self.addCleanup(names.unlink, missing_ok=True)
        lines = [line.split(" ", 2) for line in names.read_text().splitlines()]
        places = [int(begin, 16) for begin, _, name in lines if name == "answer"]
        self.assertEqual(len(places), 1, lines)
        if not shutil.which("gdb"):
            self.skipTest("gdb is not installed (./run deps)")
        asked = run(
            "gdb", "-nx", "-q", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set auto-load off",
            "-p", process.pid, "-ex", f"info symbol {places[0] + 4:#x}",
        )  # fmt: skip
        if "Operation not permitted" in asked.stderr:
            self.skipTest("ptrace is not permitted here")
        self.assertRegex(asked.stdout, r"(?m)^answer \+ 4 in section", asked.stderr)

    def test_a_library_s_function_that_the_program_has_its_own_of(self):
        """The library's new code calls the program's, as the old does."""
        self.write("main.c", MAIN.replace("answer(5)", "answer(policy(5))").replace("int answer(int);", "int answer(int);\nint policy(int x) { return x; }"))
        self.write("answer.c", "int policy(int x) { return x + 1000; }\nint answer(int x) { return policy(x) + 10; }\n")
        library = "libanswer.so: answer.c\n\t$(CC) $(CFLAGS) -fPIC -c answer.c\n\t$(CC) -shared -Wl,--build-id -o $@ answer.o\n"
        self.write("Makefile", "CFLAGS = -g -O2\nprog: main.o libanswer.so\n\t$(CC) -o $@ main.o -L. -lanswer -Wl,-rpath,'$$ORIGIN'\n" + library)
        program = self.make_target()
        self.target = program.parent / "libanswer.so"
        done, said = self.molt_build(self.diff(answer_c=lambda text: text.replace("+ 10;", "+ 20;")))
        self.assert_built(done, said, "answer")
        process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.addCleanup(process.wait)
        self.addCleanup(process.stdin.close)
        self.addCleanup(process.stdout.close)
        self.assertEqual(process.stdout.readline(), "ready\n")
        applied = run(MOLT, "apply", self.folder / "fix.molt", "-p", process.pid)
        self.assertEqual(applied.returncode, 0, applied.stderr)
        process.stdin.write("\n")
        self.assertEqual(process.stdout.readline(), "25 1\n")

    def test_program_and_its_modules_in_one_patch(self):
        self.write(
            "main.c",
            MAIN.replace("#include <stdio.h>", "#include <dlfcn.h>\n#include <stdio.h>")
            .replace("int answer(int);", "int spare(int x) { return x + 7000; }\nint __attribute__((noinline, noclone)) answer(int x) { return x * 37 + 1; }")
            .replace("  puts(", "  int (*plug)(int) = dlsym(dlopen(\"./plug.so\", RTLD_NOW), \"plug\");\n  puts(")
            .replace("count(1));", "plug(1));"),
        )
        self.write("plug.c", "static int calls;\nint plug(int x) {\n  return x + ++calls;\n}\n")
        self.write(
            "Makefile",
            "CFLAGS = -g -O2\nall: prog plug.so\nprog: main.c\n\t$(CC) $(CFLAGS) -rdynamic -o $@ main.c -ldl\n"
            "plug.o: plug.c\n\t$(CC) $(CFLAGS) -fPIC -c -o $@ plug.c\nplug.so: plug.o\n\t$(CC) -shared -o $@ plug.o\n",
        )
        self.make_target()
        # The module calls what only the program exports, which it never did before.
        diff = self.diff(
            main_c=lambda text: text.replace("x * 37 + 1;", "x * 37 + 100;"),
            plug_c=lambda text: "int spare(int);\n" + text.replace("x + ++calls", "spare(++calls)"),
        )
        plug = self.target.parent / "plug.so"
        done, said = self.molt_build(diff, "--target", plug)
        self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
        self.assertEqual({(f["name"], Path(f["target"]).name) for f in said["functions"]},
                         {("answer", "prog"), ("plug", "plug.so")}, said)  # fmt: skip
        process = subprocess.Popen(
            [self.target], cwd=self.target.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.stdin.close)
        self.addCleanup(process.stdout.close)

        def ask():
            process.stdin.write("\n")
            return process.stdout.readline().split()

        self.assertEqual(process.stdout.readline(), "ready\n")
        self.assertEqual(ask(), ["186", "2"])
        applied = run(MOLT, "apply", self.folder / "fix.molt", "-p", process.pid)
        self.assertEqual(applied.returncode, 0, applied.stderr)
        self.assertEqual(ask(), ["285", "7002"])
        self.assertEqual(run(MOLT, "revert", "fix", "-p", process.pid).returncode, 0)
        self.assertEqual(ask(), ["186", "4"])
        # The module alone: what it wants is not there, and the line says what to do.
        self.target = plug
        done, said = self.molt_build(diff)
        self.assert_refused(done, said, "symbol_absent", "spare")
        self.assertIn("--target", said["refusals"][0]["advice"])

    def test_callbacks(self):
        self.make_target()
        source = self.folder / "callbacks.cpp"
        source.write_text(
            "#include <molt/livepatch.h>\n#include <unistd.h>\n"
            "static int before(const molt_patch_target*) { return write(2, \"pre\\n\", 4) == 4 ? 0 : -1; }\n"
            "MOLT_PATCH_CALLBACKS(nullptr, before, nullptr, nullptr, nullptr)\n"
        )
        done, said = self.molt_build(self.diff(answer_c=lambda text: text.replace(*DOUBLE)), "--callbacks", source)
        self.assert_built(done, said, "answer")
        self.assertIn(b"before", (self.folder / "fix.molt").read_bytes())
        # What changed sources call of it is weak there: the program is linked without it.
        source.write_text(
            "#include <molt/livepatch.h>\nextern \"C\" long* spare(void* of) {\n"
            "  return static_cast<long*>(molt_shadow_get_or_alloc(of, 1, 8, nullptr, nullptr));\n}\n"
            "static void forget(const molt_patch_target*) { molt_shadow_free_all(1, nullptr); }\n"
            "MOLT_PATCH_CALLBACKS(nullptr, nullptr, nullptr, nullptr, forget)\n"
        )
        weak = "long *spare(void *of) __attribute__((weak));\nint answer(int x) {\n  ++*spare(&calls);\n"
        diff = self.diff(answer_c=lambda text: text.replace("int answer(int x) {\n", weak))
        done, said = self.molt_build(diff, "--callbacks", source)
        self.assert_built(done, said, "answer")
        source.write_text("this is no C++\n")
        done, _ = self.molt_build(self.diff(answer_c=lambda text: text.replace(*DOUBLE)), "--callbacks", source)
        self.assertEqual(done.returncode, 1)
        self.assertIn("callbacks.cpp", done.stderr + done.stdout)

    def test_a_type_that_stays_as_it_is(self):
        """Counters on the heap become narrower and change places: `--leave-out` keeps them, and what they hold."""
        self.write("scale.h", "#define SCALE 2\n" + COUNTERS)
        self.write("answer.c", COUNTING)
        self.make_target()
        diff = self.diff(
            scale_h=lambda text: text.replace("  long used; /* times { */\n", "").replace("  char *name;\n", "  char *name;\n  unsigned used;\n"),
            answer_c=lambda text: text.replace("return c->used", "return 1000 + c->used"),
        )
        done, said = self.molt_build(diff)
        self.assert_refused(done, said, "layout_changed", "member used: long int (8 bytes) -> unsigned int")
        self.assertIn("--leave-out=counters if the fix is not in the type", said["refusals"][0]["advice"])
        done, said = self.molt_build(diff, "--leave-out", "counters", "--description", "counts")
        self.assert_built(done, said, "answer")
        self.assertIn("scale.h: counters stays as it is; what the diff does to it is left out", said["notes"])
        self.assertIn(b"counts; left out: counters\0", (self.folder / "fix.molt").read_bytes())
        process = subprocess.Popen([self.target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.addCleanup(process.wait)
        self.addCleanup(process.stdin.close)
        self.addCleanup(process.stdout.close)

        def ask():
            process.stdin.write("\n")
            return process.stdout.readline().split()[0]

        self.assertEqual(process.stdout.readline(), "ready\n")
        self.assertEqual([ask(), ask()], ["1", "2"])
        applied = run(MOLT, "apply", self.folder / "fix.molt", "-p", process.pid)
        self.assertEqual(applied.returncode, 0, applied.stderr)
        self.assertEqual(ask(), "1003")
        self.assertEqual(run(MOLT, "revert", "fix", "-p", process.pid).returncode, 0)
        self.assertEqual(ask(), "4")
        # A file that is left out is not compiled for; the copy is clean, and the whole diff is refused as before.
        done, said = self.molt_build(diff, "--leave-out", "scale.h")
        self.assert_built(done, said, "answer")
        self.assertEqual(said["units_compiled"], 1)
        done, said = self.molt_build(diff)
        self.assert_refused(done, said, "layout_changed", "member used: long int (8 bytes) -> unsigned int")

    def boxes(self, extra="", compiler="cc"):
        self.write("Makefile", MAKEFILE.replace("-g -O2", "-g -O2 -Wall -Wextra -Werror -std=gnu99") + f"CC = {compiler}\n")
        self.write("scale.h", "struct box {\n  int key;\n  long used;\n};\n")
        self.write("answer.c", BOXES + extra)
        self.write("main.c", COMMANDS)
        self.make_target()
        return self.diff(
            scale_h=lambda text: text.replace("  long used;\n", "  char by;\n  long used;\n  unsigned often : 7, top : 1;\n"),
            answer_c=lambda text: text.replace("if (*who) b->used++;", "struct mark *m = &last; b->used++; m->by = b->by; b->by = who[0]; if (m->by == b->by) m->by = 0; b->often++; b->top = b->often > 2;").replace(
                'printf("%d:%ld\\n", b->key, b->used);',
                'printf("%d:%ld %c %d%d\\n", b->key, b->used, b->by ? b->by : \'-\', b->often, (*b).top);'),
        )

    def test_members_that_lie_beside(self):
        """A struct on the heap gets members, and `--beside` keeps those of its objects that exist; none has another's."""
        diff = self.boxes()
        done, said = self.molt_build(diff)
        self.assert_refused(done, said, "layout_changed", "struct box: 16 -> 24 bytes")
        self.assertIn("; --beside=box if 0 is right for those that exist", said["refusals"][0]["advice"])
        done, said = self.molt_build(diff, "--beside=box", "--keep-old=command")
        self.assert_refused(done, said, "layout_changed", "command makes objects, and stays as it is (--keep-old)")
        done, said = self.molt_build(diff, "--beside", "box", "--description", "who")
        self.assert_built(done, said, "command")
        self.assertIn("scale.h: box stays as it is; by, often, top of its objects lie beside them, 0 for those that exist", said["notes"])
        self.assertIn(b"who; beside: box\0", (self.folder / "fix.molt").read_bytes())
        process = subprocess.Popen([self.target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.addCleanup(process.wait)
        self.addCleanup(process.stdin.close)
        self.addCleanup(process.stdout.close)

        def ask(what):
            process.stdin.write(what + "\n")
            return process.stdout.readline().rstrip("\n")

        def apply():
            applied = run(MOLT, "apply", self.folder / "fix.molt", "-p", process.pid)
            self.assertEqual(applied.returncode, 0, applied.stderr)

        self.assertEqual([ask("+1"), ask("u1x"), ask("+2")], ["1:0", "1:1", "2:0"])
        apply()
        self.assertEqual([ask("s1"), ask("u1y"), ask("s2")], ["1:1 - 00", "1:2 y 10", "2:0 - 00"])
        self.assertEqual([ask("u1a"), ask("u1b"), ask("u1c")], ["1:3 a 20", "1:4 b 31", "1:5 c 41"])
        # The memory of the one before, as a rule; freed by what nobody patches.
        self.assertEqual([ask("+1"), ask("u1z"), ask("u2q")], ["1:0 - 00", "1:1 z 10", "2:1 q 10"])
        self.assertEqual(run(MOLT, "revert", "fix", "-p", process.pid).returncode, 0)
        self.assertEqual([ask("s1"), ask("u2q")], ["1:1", "2:2"])
        apply()
        self.assertEqual([ask("s1"), ask("u2q")], ["1:1 - 00", "2:3 q 10"])
        # Neither would forget what the other keeps beside an object that is made.
        done, said = self.molt_build(diff, "--beside=box", "--patch-name=other", "-o", self.folder / "other.molt")
        self.assertEqual(done.returncode, 0, done.stderr)
        applied = run(MOLT, "apply", self.folder / "other.molt", "-p", process.pid)
        self.assertEqual(applied.returncode, 1)
        self.assertIn("another patch has members that lie beside the same type: revert it first", applied.stderr)
        self.assertEqual([ask("s1"), ask("u2r")], ["1:1 - 00", "2:4 r 20"])
        self.assertEqual(run(MOLT, "revert", "fix", "-p", process.pid).returncode, 0)
        applied = run(MOLT, "apply", self.folder / "other.molt", "-p", process.pid)
        self.assertEqual(applied.returncode, 0, applied.stderr)
        self.assertEqual([ask("s2"), ask("u2s")], ["2:4 - 00", "2:5 s 10"])

    def test_objects_that_a_library_makes(self):
        """Both are patched, or none: what the library makes would have what lay beside others."""
        library = "libanswer.so: answer.o\n\t$(CC) -shared -Wl,--build-id -o $@ answer.o\nmain.o answer.o: scale.h\n"
        self.write("Makefile", "CFLAGS = -g -O2 -fPIC\nprog: main.o libanswer.so\n\t$(CC) -o $@ main.o -L. -lanswer -Wl,-rpath,'$$ORIGIN'\n" + library)
        self.write("scale.h", "struct box { int key; };\n")
        make = "struct box *make(void) {\n  struct box *b = malloc(sizeof(*b));\n  b->key = 1;\n  return b;\n}\n"
        self.write("answer.c", '#include <stdlib.h>\n#include "scale.h"\n' + make)
        use = "struct box *make(void);\nvoid command(const char *line) {\n  struct box *b = make();\n  (void) line;\n  free(b);\n}\n"
        self.write("main.c", '#include <stdlib.h>\n#include "scale.h"\n' + use + COMMANDS)
        program = self.make_target()
        diff = self.diff(
            scale_h=lambda text: text.replace("int key;", "int key; int by;"),
            answer_c=lambda text: text.replace("b->key = 1;", "b->key = 1, b->by = 0;"),
            main_c=lambda text: text.replace("free(b);", "b->by++;\n  free(b);"),
        )
        done, said = self.molt_build(diff, "--beside=box")
        self.assert_refused(done, said, "layout_changed", "answer.c makes objects of box, and is in no target")
        done, said = self.molt_build(diff, "--beside=box", "--target", program.parent / "libanswer.so")
        self.assert_built(done, said, "command", "make")

    def test_members_that_lie_beside_by_clang(self):
        done, said = self.molt_build(self.boxes(compiler="clang"), "--beside=box")
        self.assert_built(done, said, "command", "use", "show")

    def test_who_knows_how_large_it_is(self):
        """Copies, other types, arrays and variables would have to know what lies beside: each is refused by name."""
        diff = self.boxes("""
            void copied(struct box *to, const struct box *from) { *to = *from; }
            void cleared(struct box *b) { memset(b, 0, sizeof *b); }
            struct box *next(struct box *b) { return b + 1; }
            struct pair { struct box one, two; };
            long second(const struct pair *p) { return p->two.used; }
            struct box spare;
            struct box *many(void) { return malloc(3 * sizeof(struct box)); }
            long apart(const struct box *b) { return b->used; }
            union slot { struct box one; char bytes[100000]; };
            union slot *slot(void) { union slot *s = malloc(sizeof(union slot)); s->one.key = 0; return s; }
            struct pool { int n; };
            struct pool *pool_alloc(size_t n) { return calloc(1, n); }
            struct pool *pool(void) { struct pool *p = pool_alloc(sizeof(struct box)); return p; }
            unsigned char bytes(void) { return sizeof(struct box); }
        """)
        done, said = self.molt_build(diff, "--beside=box")
        self.assert_refused(done, said, "layout_changed", "copied knows how large box is: it copies objects")
        symbols = sorted(r["symbol"] for r in said["refusals"] if r["symbol"])
        self.assertEqual(symbols, ["bytes", "cleared", "copied", "many", "next", "pool", "second", "spare"])
        said = [r["text"] for r in said["refusals"]]
        for text in ("union slot has box as a member: ", "struct pair has box as a member: ", "pool knows how large box is: ", "bytes knows"):
            self.assertTrue(any(one.startswith(text) for one in said), (text, said))
        # What was not understood is not changed by halves, and the copy is clean.
        done, said = self.molt_build(diff)
        self.assert_refused(done, said, "layout_changed", "struct box: 16 -> 24 bytes")

    def test_what_does_not_lie_beside(self):
        diff = self.boxes("struct box *several(int n) { struct box *b; b = calloc(n, sizeof(*b)); return b; }\n")
        done, said = self.molt_build(diff, "--beside=box")
        self.assertIn("molt_makes_one_object", said["error"]["message"])
        self.assertIn("--beside: what cannot lie beside does not compile; the build command failed", said["error"]["message"])
        self.write("answer.c", BOXES.replace("b = malloc(sizeof(*b));", "static char slots[9][32], n; b = (struct box *) slots[n++ % 9];"))
        diff = self.diff(scale_h=lambda text: text.replace("  long used;\n", "  long used;\n  int by;\n"), answer_c=lambda text: text.replace("b->used++;", "b->by++;"))
        done, said = self.molt_build(diff, "--beside=box")
        self.assert_refused(done, said, "layout_changed", "no place is known where box is made")
        for words, text in ((["--beside=bix"], "--beside=bix: no file of the diff defines it"),
                            (["--beside=box", "--callbacks", self.tree / "answer.c"], "keep the members in the callbacks")):
            done, said = self.molt_build(diff, *words)
            self.assertIn(text, said["error"]["message"])
            self.assertFalse((self.folder / "fix.molt").exists())

    def test_second_run_compiles_only_what_the_diff_touches(self):
        self.make_target()
        self.molt_build(self.diff(answer_c=lambda text: text.replace(*DOUBLE)))
        done, said = self.molt_build(self.diff(main_c=lambda text: text.replace("calls += by", "calls += 2 * by")))
        self.assert_built(done, said, "count")
        self.assertEqual(said["units_compiled"], 1)
        # The user goes on working: what he changed meanwhile counts. The program is another one now.
        self.write("answer.c", ANSWER.replace("x * 7", "x * 9"))
        shutil.rmtree(self.folder / "packaged")
        self.make_target()
        done, said = self.molt_build(self.diff(answer_c=lambda text: text.replace(*DOUBLE)))
        self.assert_built(done, said, "answer")

    def test_lines_that_moved_change_nothing(self):
        self.make_target()
        diff = self.diff(answer_c=lambda text: text.replace("  assert(x > 0);", "  x += 1;\n  x += 1;\n  assert(x > 0);"))
        done, said = self.molt_build(diff)
        self.assert_built(done, said, "answer")

    def test_comment_only(self):
        self.make_target()
        done, said = self.molt_build(self.diff(answer_c=lambda text: "/* a comment */\n" + text))
        self.assertEqual((done.returncode, said["functions"], said["refusals"]), (0, [], []), done.stderr)
        self.assertFalse((self.folder / "fix.molt").exists())

    def test_another_unit_that_is_not_the_running_one_is_told(self):
        self.make_target()
        self.write("main.c", MAIN.replace("count(1)", "count(3)"))
        done, said = self.molt_build(self.diff(answer_c=lambda text: text.replace(*DOUBLE)))
        self.assert_built(done, said, "answer")
        self.assertLess(said["functions_proven"], said["functions_compared"])
        self.assertTrue(any("such as count" in note and "main.o" in note for note in said["notes"]), said)

    def test_header(self):
        self.make_target()
        done, said = self.molt_build(self.diff(scale_h=lambda text: text.replace("2", "3")))
        self.assert_built(done, said, "answer")

    def test_what_is_missing_is_missing_for_probes_too(self):
        # As configure scripts ask; what gcc answers must not depend on who watches.
        self.write("probe.c", "#include <no/such/header.h>\nint x;\n")
        probe = "HAS := $(shell $(CC) -c probe.c -o probe.o 2>/dev/null && echo -DSCALE=9)\n"
        self.write("Makefile", probe + MAKEFILE.replace("-O2", "-O2 $(HAS)"))
        self.write("scale.h", "#ifndef SCALE\n#define SCALE 2\n#endif\n")
        self.make_target()
        done, said = self.molt_build(self.diff(answer_c=lambda text: text.replace(*DOUBLE)))
        self.assert_built(done, said, "answer")

    def test_header_that_the_makefile_does_not_know_of(self):
        self.header_that_the_makefile_does_not_know_of("")

    def test_header_that_the_makefile_does_not_know_of_and_clang(self):
        self.header_that_the_makefile_does_not_know_of("CC = clang\n")

    def test_objects_of_the_user_s_own_are_built_again(self):
        # They are newer than their sources, and nothing says that answer.o includes scale.h.
        self.write("Makefile", MAKEFILE.replace("answer.c scale.h", "answer.c").replace("main.c\n", "main.c scale.h\n"))
        self.make_target()
        shutil.rmtree(self.tree)
        shutil.copytree(self.folder / "packaged", self.tree)
        done, said = self.molt_build(self.diff(scale_h=lambda text: text.replace("2", "3")))
        self.assert_built(done, said, "answer")
        self.assertGreater(said["functions_compared"], 3)

    def header_that_the_makefile_does_not_know_of(self, first):
        self.write("Makefile", first + MAKEFILE.replace(" scale.h", ""))
        self.make_target()
        done, said = self.molt_build(self.diff(scale_h=lambda text: text.replace("2", "3")))
        self.assert_built(done, said, "answer")
        self.assertTrue(any("compiled by itself" in note for note in said["notes"]), said)

    def test_build_command_that_never_builds_again(self):
        # As debian/rules does, by its stamps.
        command = ["sh", "-c", "test -e stamp || { make -s && touch stamp; }"]
        self.make_target(command)
        diff = self.diff(answer_c=lambda text: text.replace(*DOUBLE))
        done, said = self.molt_build(diff, command=command)
        self.assert_built(done, said, "answer")
        self.write("main.c", MAIN.replace("count(1)", "count(3)"))
        shutil.rmtree(self.folder / "packaged")
        self.make_target(command)
        done, said = self.molt_build(diff, command=command)
        self.assert_built(done, said, "answer")
        self.assertEqual(said["functions_proven"], said["functions_compared"])

    def test_new_file(self):
        self.write("Makefile", MAKEFILE.replace("main.o answer.o", "$(patsubst %.c,%.o,$(wildcard *.c))"))
        self.make_target()
        diff = self.diff(
            answer_c=lambda text: text.replace("int answer", "int more(int);\nint answer").replace("count(x) *", "more(count(x)) *"),
            more_c=lambda _: "int more(int x) { return x + 1; }\n",
        )
        done, said = self.molt_build(diff)
        self.assert_built(done, said, "answer")

    def test_stripped_with_and_without_its_debug_file(self):
        self.make_target()
        debug = self.folder / "prog.debug"
        self.assertEqual(run("objcopy", "--only-keep-debug", self.target, debug).returncode, 0)
        self.assertEqual(run("strip", self.target).returncode, 0)
        diff = self.diff(answer_c=lambda text: text.replace(*DOUBLE))
        for options in ([], ["--debug", debug]):
            done, said = self.molt_build(diff, *options)
            self.assert_built(done, said, "answer")
        done, _ = self.molt_build(diff, "--debug", MOLT)
        self.assertEqual(done.returncode, 1)
        self.assertIn("another build", done.stderr)

    def test_compiled_and_linked_by_one_command(self):
        command = ["gcc", "-g", "-O2", "-o", "prog", "main.c", "answer.c"]
        self.make_target(command)
        done, said = self.molt_build(self.diff(answer_c=lambda text: text.replace(*DOUBLE)), command=command)
        self.assert_built(done, said, "answer")

    def test_clang(self):
        """Our options are no reason for warnings that are errors."""
        self.write("Makefile", "CC = clang -Werror\n" + MAKEFILE)
        self.make_target()
        done, said = self.molt_build(self.diff(answer_c=lambda text: text.replace(*DOUBLE)))
        self.assert_built(done, said, "answer")

    def test_a_type_that_clang_describes_later(self):
        """It describes what a unit uses: the base of std::string has no size before it is made here."""
        self.write("length.cpp", '#include <string>\nusing std::string;\nextern "C" int answer(int);\n'
                   "int __attribute__((noinline)) length(const string &of) {\n  return of.c_str()[0];\n}\n"
                   "extern string *given;\nint answer(int x) {\n  return given ? length(*given) : x;\n}\n")  # fmt: skip
        self.write("given.cpp", '#include <string>\nstd::string *given;\n')
        self.write("Makefile", "CXXFLAGS = -g -O2 -std=c++20\nCXX = clang++\nCC = clang\nCFLAGS = -g\n"
                   "prog: main.o length.o given.o\n\t$(CXX) -o $@ $^\nlength.o: length.cpp\n")  # fmt: skip
        self.make_target()
        made = '  static string &own = *new string("x");\n  own += of;\n  return own.c_str()[0];\n'
        done, said = self.molt_build(self.diff(length_cpp=lambda text: text.replace("  return of.c_str()[0];\n", made)))
        self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
        self.assertEqual([function["name"].split("(")[0] for function in said["functions"]], ["length"])

    def test_room_in_front_of_functions(self):
        """-fpatchable-function-entry, and debug information in files of its own: what is compared has neither; or compressed."""
        room = "-gsplit-dwarf -fpatchable-function-entry=16,14"
        for compiler, flags in (("gcc", room), ("clang", room), ("gcc", "-gz"), ("clang", "-gz")):
            self.write("Makefile", f"CC = {compiler}\n" + MAKEFILE.replace("-g", f"-g {flags}"))
            for folder in ("packaged", "cache"):
                shutil.rmtree(self.folder / folder, ignore_errors=True)
            self.write("scale.h", "#define SCALE 2\nstruct pair {\n  char first;\n  int second;\n};\nextern struct pair pair;\n")
            self.write("answer.c", ANSWER + "struct pair pair;\nint __attribute__((noinline)) second(void) {\n  return pair.second;\n}\n")
            self.make_target()
            done, said = self.molt_build(self.diff(answer_c=lambda text: text.replace(*DOUBLE)))
            self.assert_built(done, said, "answer")
            done, said = self.molt_build(self.diff(scale_h=lambda text: text.replace("char first", "long first")))
            self.assert_refused(done, said, "layout_changed", "member first: char")

    @unittest.skipUnless(shutil.which("cmake") and shutil.which("ninja"), "no cmake or no ninja")
    def test_cmake_and_ninja_with_a_compiler_cache(self):
        self.write(
            "CMakeLists.txt",
            "cmake_minimum_required(VERSION 3.20)\nproject(p C)\nset(CMAKE_C_FLAGS \"-g -O2\")\n"
            "add_executable(prog main.c answer.c)\n",
        )
        launcher = "-DCMAKE_C_COMPILER_LAUNCHER=ccache " if shutil.which("ccache") else ""
        command = ["sh", "-c", f"cmake -G Ninja {launcher}-S . -B out && ninja -C out"]
        self.make_target(command, "out/prog")
        done, said = self.molt_build(self.diff(answer_c=lambda text: text.replace(*DOUBLE)), command=command)
        self.assert_built(done, said, "answer")

    @unittest.skipUnless(shutil.which("cmake") and shutil.which("ninja"), "no cmake or no ninja")
    def test_a_build_folder_beside_the_tree(self):
        self.write("CMakeLists.txt", "cmake_minimum_required(VERSION 3.20)\nproject(p C)\nadd_executable(prog main.c answer.c)\n")
        out = self.folder / "out"
        done = run("cmake", "-G", "Ninja", "-DCMAKE_C_FLAGS=-g -O2", "-S", self.tree, "-B", out, env=self.environment)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(run("ninja", "-C", out, env=self.environment).returncode, 0)
        self.target = out / "prog"
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        diff = self.diff(answer_c=lambda text: text.replace(*DOUBLE))
        # Named by the command; named by hand; where the user stands, who then need not name the tree.
        for command, options, here in (
            (["ninja", "-C", "../out"], (), self.tree),
            (["sh", "-c", "ninja -C ../out"], ("--build-folder", "../out"), self.tree),
            (["ninja"], (), out),
        ):
            done = run(
                MOLT, "build", "--json", "--diff", diff, "--target", self.target, "-o", self.folder / "fix.molt", *options,
                "--", *command, cwd=here, env=self.environment,
            )  # fmt: skip
            self.assert_built(done, json.loads(done.stdout or "{}"), "answer")
        # Not named at all: refused before the diff is in.
        self.assertEqual(before, {path: path.stat().st_mtime_ns for path in out.rglob("*")})
        self.write("answer.c", ANSWER.replace("x * 7", "x * 9"))
        done, _ = self.molt_build(diff, command=["sh", "-c", "ninja -C ../out"])
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("--build-folder", done.stderr)
        done, _ = self.molt_build(diff, "--build-folder", self.folder, command=["true"])
        self.assertIn("inside of each other", done.stderr)

    def test_a_change_that_is_older_than_what_was_built(self):
        self.make_target()
        diff = self.diff(answer_c=lambda text: text.replace(*DOUBLE))
        self.molt_build(diff)
        # Out of an archive: the time is of long ago, and make would leave the object alone.
        self.write("main.c", MAIN.replace("count(1)", "count(3)"))
        os.utime(self.tree / "main.c", (1_000_000_000, 1_000_000_000))
        shutil.rmtree(self.folder / "packaged")
        self.make_target()
        done, said = self.molt_build(diff)
        self.assert_built(done, said, "answer")
        self.assertGreater(said["functions_compared"], 3)
        self.assertEqual(said["functions_proven"], said["functions_compared"])

    @unittest.skipUnless(shutil.which("dpkg-buildpackage"), "no dpkg-dev")
    def test_a_debian_package(self):
        """What runs is stripped, and lies in the package's folder."""
        self.write("debian/control", "Source: prog\nMaintainer: Nobody <n@example.org>\nRules-Requires-Root: no\n\nPackage: prog\nArchitecture: any\nDescription: a program\n")
        self.write("debian/changelog", "prog (1) unstable; urgency=low\n\n  * New.\n\n -- Nobody <n@example.org>  Thu, 01 Jan 2026 00:00:00 +0000\n")
        self.write("debian/source/format", "3.0 (native)\n")
        self.write("debian/rules", DEBIAN_RULES)
        (self.tree / "debian/rules").chmod(0o755)
        build = ["dpkg-buildpackage", "-b", "-nc", "-us", "-uc", "-d"]
        self.make_target(build, "debian/prog/usr/bin/prog")
        done, said = self.molt_build(self.diff(answer_c=lambda text: text.replace(*DOUBLE)), command=build)
        self.assert_built(done, said, "answer")
        self.assertEqual(said["functions_proven"], said["functions_compared"])

    def test_a_configure_script_and_a_build_below_the_tree(self):
        self.write(
            "configure",
            "#!/bin/sh\necho 'int main(void){return 0;}' > conftest.c\ngcc -c conftest.c -o conftest.o || exit 1\n"
            "rm -f conftest.*\nmkdir -p out && sed 's|\\([a-z]*\\)\\.c|../\\1.c|; s|scale|../scale|' Makefile > out/Makefile\n"
            "printf '%%.o: ../%%.c\\n\\t$(CC) $(CFLAGS) -c -o $@ $<\\n' >> out/Makefile\n",
        )
        command = ["sh", "-c", "test -d out || sh ./configure; exec make -s -C out"]
        self.make_target(command, "out/prog")
        done, said = self.molt_build(self.diff(answer_c=lambda text: text.replace(*DOUBLE)), command=command)
        self.assert_built(done, said, "answer")


class Interrupted(Tree):
    """Builds that are killed: a compiler waits for a pipe, which it includes, and the tool dies meanwhile."""

    def setUp(self):
        super().setUp()
        self.gate = self.folder / "gate"
        self.including = f'#include "{self.gate}"\n'

    def kill_in(self, diff):
        """Kills it where it waits; the compiler goes on without it."""
        os.mkfifo(self.gate)
        process = subprocess.Popen(
            [MOLT, "build", "--diff", diff, "--target", self.target, "-o", self.folder / "fix.molt", "--", *self.build],
            cwd=self.tree, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        reader = []

        def open_if_nobody_does():
            process.wait()
            reader.append(os.open(self.gate, os.O_RDONLY | os.O_NONBLOCK))

        watch = threading.Thread(target=open_if_nobody_does)
        watch.start()
        writer = os.open(self.gate, os.O_WRONLY)
        waited = not reader
        process.kill()
        watch.join()
        os.close(reader[0])
        self.assertTrue(waited, "it ended instead of waiting")
        (self.copy,) = (self.folder / "cache/molt/builds").glob("*/tree")
        # What a compiler leaves that was killed as well.
        os.close(writer)
        self.gate.unlink()
        self.gate.write_text("")

    def left_behind(self):
        return list(self.copy.parent.glob("*/*.begun"))

    def test_while_the_tree_is_built(self):
        self.gate.write_text("")
        self.write("answer.c", self.including + ANSWER)
        self.make_target()
        self.gate.unlink()
        self.kill_in(self.change())
        self.assertEqual(len(self.left_behind()), 1)
        before = (self.copy / "main.o").stat().st_mtime_ns
        done, said = self.molt_build(self.change())
        self.assert_built(done, said, "answer")
        self.assertEqual((self.copy / "main.o").stat().st_mtime_ns, before, "it was compiled again")
        self.assertEqual(self.left_behind(), [])

    def test_half_an_object_is_not_believed(self):
        self.gate.write_text("")
        self.write("answer.c", self.including + ANSWER)
        self.make_target()
        for is_noted in (True, False):
            shutil.rmtree(self.folder / "cache", ignore_errors=True)
            self.gate.unlink()
            self.kill_in(self.change())
            (note,) = self.left_behind()
            with open(note, encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # the compiler has ended
            (self.copy / "answer.o").write_bytes(b"\x7fELF")
            before = (self.copy / "main.o").stat().st_mtime_ns
            if not is_noted:
                note.unlink()
            done, said = self.molt_build(self.change())
            self.assert_built(done, said, "answer")
            # The control: without the note the program does not link, and all is built anew.
            self.assertEqual((self.copy / "main.o").stat().st_mtime_ns == before, is_noted)

    def test_a_build_of_many_processes(self):
        # What goes on in the background of a shell nobody would have told: it would sleep then.
        self.gate.write_text("")
        self.write("answer.c", self.including + ANSWER)
        self.build = ["sh", "-c", f"test -p {self.gate} && long=1000; (make -s; exec sleep ${{long:-0}}) & wait"]
        self.make_target()
        self.gate.unlink()
        self.kill_in(self.change())
        done, said = self.molt_build(self.change())
        self.assert_built(done, said, "answer")
        # It had to wait for the lock, so nothing of the killed one runs by now.
        mine = str(self.copy.parent)
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                self.assertNotIn(mine, path.read_bytes().decode(errors="replace"), path)
            except OSError:
                continue

    def test_while_the_diff_is_in(self):
        self.make_target()
        self.kill_in(self.diff(answer_c=lambda text: self.including + text.replace(*DOUBLE)))
        self.assertIn(str(self.gate), (self.copy / "answer.c").read_text())
        marker = self.copy / "marker"
        marker.write_text("")
        done, said = self.molt_build(self.diff(main_c=lambda text: text.replace("calls += by", "calls += 2 * by")))
        self.assert_built(done, said, "count")
        self.assertEqual((self.copy / "answer.c").read_text(), ANSWER)
        self.assertEqual(said["functions_proven"], said["functions_compared"])
        self.assertTrue(marker.exists(), "the copy was thrown away")

    def test_while_the_diff_is_in_and_nothing_tells_with_what(self):
        self.make_target()
        self.kill_in(self.diff(answer_c=lambda text: self.including + text.replace(*DOUBLE)))
        (self.copy.parent / "undo").unlink()
        marker = self.copy / "marker"
        marker.write_text("")
        done, said = self.molt_build(self.change())
        self.assert_built(done, said, "answer")
        self.assertFalse(marker.exists(), "a copy with the diff in it was used")

    def change(self):
        return self.diff(answer_c=lambda text: text.replace(*DOUBLE))


def refuse_namespaces():
    """As the seccomp profile of a container does: unshare(2) answers EPERM, for this process and its children."""
    unshare, libc = 272, ctypes.CDLL(None, use_errno=True)
    steps = struct.pack(
        "HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, unshare, 0x06, 0, 0, 0x00050000 | errno.EPERM, 0x06, 0, 0, 0x7FFF0000
    )
    buffer = ctypes.create_string_buffer(steps)
    program = struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer))
    if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, program, 0, 0) != 0:
        os._exit(99)


class WithoutNamespaces(Tree):
    """What works where no mount namespace is permitted, and what is refused."""

    def build_there(self, diff, command=None):
        done = run(
            MOLT, "build", "--json", "--diff", diff, "--target", self.target, "-o", self.folder / "fix.molt",
            "--", *(command or self.build), cwd=self.tree, env=self.environment, preexec_fn=refuse_namespaces,
        )  # fmt: skip
        return done, json.loads(done.stdout) if done.stdout.startswith("{") else {}

    def change(self):
        return self.diff(answer_c=lambda text: text.replace(*DOUBLE))

    def test_the_copy_goes_by_the_name_of_the_tree(self):
        # __FILE__ is absolute, and in the code that is compared.
        self.write("Makefile", MAKEFILE.replace("answer.o: answer.c", "answer.o:\n\t$(CC) $(CFLAGS) -c -o $@ $(CURDIR)/answer.c\nanswer.o: answer.c"))
        self.make_target()
        before = sorted(path.name for path in self.tree.iterdir())
        for _ in range(2):
            done, said = self.build_there(self.change())
            self.assert_built(done, said, "answer")
            self.assertEqual(said["functions_proven"], said["functions_compared"])
            self.assertIn("no mount namespace", " ".join(said["notes"]))
        self.assertEqual(before, sorted(path.name for path in self.tree.iterdir()))
        # The same copy in the tree's place again, and nothing of the other place is left in it.
        done, said = self.molt_build(self.change())
        self.assert_built(done, said, "answer")
        self.assertEqual(said["functions_proven"], said["functions_compared"])

    def assert_told(self, done, code):
        self.assertEqual(done.returncode, code, done.stdout)
        self.assertIn("namespace", done.stderr)
        self.assertEqual(self.before, sorted(path.name for path in self.tree.rglob("*")))

    def test_absolute_paths_are_refused(self):
        self.make_target()
        self.before = sorted(path.name for path in self.tree.rglob("*"))
        done, _ = self.build_there(self.change(), ["make", "-s", "-C", self.tree])
        self.assert_told(done, 4)
        self.assertIn("seccomp", done.stderr)
        # Written down somewhere: the compiler is not let there.
        for flags in (f"-I{self.tree}", f"-I. -o {self.tree}/answer.o"):
            self.write("Makefile", MAKEFILE.replace("answer.o: answer.c", f"answer.o:\n\t$(CC) $(CFLAGS) -c {flags} answer.c\nanswer.o: answer.c"))
            self.write("answer.c", ANSWER.replace('"scale.h"', "<scale.h>"))
            done, _ = self.build_there(self.change())
            self.assert_told(done, 1)
        self.write("Makefile", MAKEFILE)
        self.write("out/CMakeCache.txt", "")
        self.before = sorted(path.name for path in self.tree.rglob("*"))
        done, _ = self.build_there(self.change())
        self.assert_told(done, 4)
        self.assertIn("CMakeCache.txt", done.stderr)


class Refusing(Tree):
    def change(self):
        return self.diff(answer_c=lambda text: text.replace(*DOUBLE))

    def test_other_flags(self):
        self.make_target()
        self.write("Makefile", MAKEFILE.replace("-O2", "-O1"))
        done, said = self.molt_build(self.change())
        self.assert_refused(done, said, "bytes_differ", "+0x", "there")

    def test_other_compiler(self):
        self.make_target()
        self.write("Makefile", "CC = clang\n" + MAKEFILE)
        done, said = self.molt_build(self.change())
        self.assert_refused(done, said, "bytes_differ", "+0x")

    def test_other_constant_in_a_string(self):
        self.make_target()
        self.write("answer.c", ANSWER.replace("x > 1", "x > 2"))
        done, said = self.molt_build(self.change())
        self.assert_refused(done, said, "bytes_differ", "later+0x")

    def test_link_time_optimisation(self):
        # One that stays a function is byte for byte there, too.
        self.write("answer.c", ANSWER.replace("int answer", "int __attribute__((noinline)) answer"))
        for first, flags in (("", "-flto"), ("", "-flto -ffat-lto-objects"), ("CC = clang\n", "-flto -fuse-ld=lld")):
            self.write("Makefile", first + MAKEFILE.replace("-O2", f"-O2 {flags}"))
            for folder in ("packaged", "cache"):
                shutil.rmtree(self.folder / folder, ignore_errors=True)
            self.make_target()
            done, said = self.molt_build(self.change())
            self.assert_refused(done, said, "lto", "link-time optimisation")

    @unittest.skipUnless(shutil.which("ld.lld"), "no lld")
    def test_folded_functions(self):
        twin = "int __attribute__((noinline)) twin(int x) {\n  return x * 1234 + 77;\n}\n"
        self.write("answer.c", ANSWER + twin)
        self.write("main.c", MAIN + twin.replace("twin", "other") + "int twin(int);\n")
        link = "-fuse-ld=lld -Wl,--icf=all -Wl,-u,twin -Wl,-u,other"
        self.write("Makefile", MAKEFILE.replace("-O2", "-O2 -ffunction-sections") + f"prog: LDFLAGS = {link}\n")
        self.make_target()
        done, said = self.molt_build(self.diff(answer_c=lambda text: text.replace("1234", "4321")))
        self.assertEqual(done.returncode, 5, done.stdout)
        self.assertTrue(any("twin" in refusal["text"] for refusal in said["refusals"]), said)
        # A function beside it is not shared, and can be patched.
        done, said = self.molt_build(self.change())
        self.assert_built(done, said, "answer")

    def test_symbol_that_the_target_does_not_have(self):
        self.make_target()
        diff = self.diff(answer_c=lambda text: text.replace("int answer", "int nowhere(int);\nint answer").replace("count(x) *", "nowhere(x) *"))
        # Linking fails as well: what is built here is the objects.
        command = ["make", "-s", "main.o", "answer.o"]
        done, said = self.molt_build(diff, command=command)
        self.assertEqual(done.returncode, 5, done.stdout + done.stderr)
        self.assertTrue(any("nowhere" in refusal["text"] for refusal in said["refusals"]), said)

    def test_another_program(self):
        self.make_target()
        self.target = Path("/bin/true").resolve()
        done, said = self.molt_build(self.change())
        self.assert_refused(done, said, "not_the_target", "none is in")

    def test_output_that_cannot_be_written(self):
        self.make_target()
        diff = self.change()
        for output, code, word in (("/nowhere/x.molt", 3, "No such file"), (self.folder, 1, "Is a directory")):
            done, _ = self.molt_build(diff, "-o", output)
            self.assertEqual(done.returncode, code)
            self.assertIn(word, done.stderr + done.stdout)
            self.assertFalse((self.folder / "cache").exists(), "it was built all the same")
        # What is no file is written to, and stays what it is.
        pipe = self.folder / "pipe"
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        done, said = self.molt_build(diff, "-o", pipe)
        self.assert_built(done, said, "answer")
        self.assertTrue(os.read(reader, 100000).startswith(b"\x7fELF"))
        self.assertTrue(pipe.is_fifo())

    def test_full_disc(self):
        """At any moment: one line says so, and the next run goes on when there is room."""
        self.make_target()
        diff = self.diff(answer_c=lambda text: text.replace(*DOUBLE))
        small = self.folder / "small"
        small.mkdir()
        script = (
            'mount -t tmpfs -o size="$1" none "$2" && cd "$3" && shift 3 && '
            'export XDG_CACHE_HOME="$0" && { "$@"; echo "first $?"; mount -o remount,size=64m "$0"; "$@"; echo "then $?"; }'
        )
        full = 0
        for size in ("40k", "100k", "140k", "180k", "260k"):
            done = run(
                "unshare", *([] if os.getuid() == 0 else ["--user", "--map-root-user"]), "--mount",
                "sh", "-c", script, small, size, small, self.tree,
                MOLT, "build", "-q", "--diff", diff, "--target", self.target, "-o", self.folder / "fix.molt", "--", "make", "-s",
                env=self.environment,
            )  # fmt: skip
            if "unshare failed" in done.stderr:
                self.skipTest("no mount namespace is permitted here")
            self.assertIn("then 0", done.stdout, (size, done.stderr))
            if "first 0" not in done.stdout:
                full += 1
                self.assertIn("o space left on d", done.stderr, size)
                self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertGreaterEqual(full, 2)

    def test_what_was_there_for_a_while(self):
        """A copying that was broken off: what the user took away since is not in the copy either."""
        self.make_target()
        diff = self.change()
        small = self.folder / "small"
        small.mkdir()
        script = (
            'mount -t tmpfs -o size=64m none "$0" && cd "$1" && shift && export XDG_CACHE_HOME="$0" && '
            '"$@"; echo "first $?"; for i in 1 2 3 4; do echo "int early$i;" > early$i.c; done; truncate -s 80m big; '
            'for i in 1 2 3 4; do echo "int late$i;" > late$i.c; done; '
            '"$@"; echo "full $?"; find "$0" -name "[el]a*.c" | wc -l; rm big early* late*; "$@"; echo "then $?"; find "$0" -name "[el]a*.c"'
        )
        done = run(
            "unshare", *([] if os.getuid() == 0 else ["--user", "--map-root-user"]), "--mount", "sh", "-c", script, small, self.tree,
            MOLT, "build", "-q", "--diff", diff, "--target", self.target, "-o", self.folder / "fix.molt", "--", "make", "-s",
            env=self.environment,
        )  # fmt: skip
        if "unshare failed" in done.stderr:
            self.skipTest("no mount namespace is permitted here")
        self.assertIn("o space left on d", done.stderr)
        self.assertEqual(done.stderr.count("No space"), 1, done.stderr)
        self.assertRegex(done.stdout, r"(?s)first 0\n.*full 1\n[1-9]\n.*then 0\n$", done.stderr)

    def test_a_diff_that_names_what_is_outside(self):
        self.make_target()
        outside = self.folder / "outside.c"
        outside.write_text("int a;\n")
        before = outside.stat().st_mtime_ns
        diff = self.folder / "out.patch"
        for name in ("a/../outside.c", str(outside)):
            diff.write_text(f"--- {name}\n+++ {name}\n@@ -1 +1 @@\n-int a;\n+int b;\n")
            done, _ = self.molt_build(diff)
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn("does not apply", done.stderr)
        self.assertEqual((outside.read_text(), outside.stat().st_mtime_ns), ("int a;\n", before))

    def test_a_name_that_is_none(self):
        self.make_target()
        done, _ = self.molt_build(self.diff(answer_c=lambda text: text.replace(*DOUBLE)), "--patch-name", "a b")
        self.assertEqual(done.returncode, 2, done.stderr)

    def test_a_source_that_was_renamed(self):
        """And one whose name git quotes."""
        makefile = "CFLAGS = -g -O2\nprog: $(patsubst %.c,%.o,$(wildcard *.c))\n\t$(CC) -o $@ $^\n"
        self.write("Makefile", makefile)
        self.make_target()
        changed = ANSWER.replace(*DOUBLE)
        gone = "".join(difflib.unified_diff(ANSWER.splitlines(True), [], "a/answer.c", "/dev/null"))
        made = "".join(difflib.unified_diff([], changed.splitlines(True), "/dev/null", "b/core.c"))
        diff = self.folder / "move.patch"
        diff.write_text(gone + made)
        done, said = self.molt_build(diff)
        self.assert_refused(done, said, "file_moved", "takes answer.c away and adds core.c")
        (self.tree / "answer.c").rename(self.tree / "änswer.c")
        shutil.rmtree(self.folder / "packaged")
        self.make_target()
        quoted = '"{}/\\303\\244nswer.c"'
        diff.write_text("".join(difflib.unified_diff(
            ANSWER.splitlines(True), changed.splitlines(True), quoted.format("a"), quoted.format("b"))))  # fmt: skip
        done, said = self.molt_build(diff)
        self.assert_built(done, said, "answer")

    def test_what_is_no_file_or_no_folder(self):
        self.make_target()
        diff = self.change()
        for words, text in (
            ((self.folder, "--source", self.tree), f"the diff {self.folder} is a folder"),
            ((diff, "--source", diff), f"the source tree {diff} is no folder"),
            ((diff, "--source", "/"), "is inside of the tree /"),
            ((diff, "--source", self.tree, "--callbacks", self.tree), f"the callbacks {self.tree} is a folder"),
        ):
            done, _ = self.molt_build(*words)
            self.assertIn(done.returncode, (1, 2), done.stderr)
            self.assertIn(text, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)

    def test_a_source_that_is_piped_into_the_compiler(self):
        """Its object is known, and stays as it is; a change of it is refused with what to do."""
        piped = "answer.o: answer.c scale.h\n\tcat answer.c | $(CC) $(CFLAGS) -x c -c -o $@ -\n"
        self.write("Makefile", MAKEFILE.replace("answer.o: answer.c scale.h\n", piped))
        self.make_target()
        for edits in ({"answer_c": lambda text: text.replace(*DOUBLE)}, {"scale_h": lambda text: text.replace("2", "3")}):
            done, said = self.molt_build(self.diff(**edits))
            self.assert_refused(done, said, "standard_input", "answer.o is compiled from what its compiler reads")
            self.assertIn("compile the file", done.stderr)
        done, said = self.molt_build(self.diff(main_c=lambda text: text.replace("calls += by", "calls += 2 * by")))
        self.assert_built(done, said, "count")
        self.assertEqual(said["functions_compared"], said["functions_proven"])
        # Where the build does not know that it depends on the file, nobody does.
        self.write("Makefile", MAKEFILE.replace("answer.o: answer.c scale.h\n", piped.replace(" answer.c scale.h", "", 1)))
        done, said = self.molt_build(self.diff(answer_c=lambda text: text.replace(*DOUBLE)))
        self.assert_refused(done, said, "not_compiled", "answer.c, which the build command did not compile from a file")

    def test_an_assembler_source(self):
        """Its object counts for identity; of a change of it nothing can be told."""
        code = "\t.text\n\t.globl five\n\t.type five,@function\nfive:\n\tlea 5(%rdi), %rax\n\tret\n\t.size five, .-five\n"
        self.write("five.S", code + '\t.section .note.GNU-stack,"",@progbits\n')
        self.write("main.c", MAIN.replace("int answer(int);", "int answer(int), five(int);").replace("answer(5)", "answer(five(0))"))
        self.write("Makefile", MAKEFILE.replace("answer.o\n", "answer.o five.o\n"))
        self.make_target()
        done, said = self.molt_build(self.diff(five_S=lambda text: text.replace("lea 5", "lea 6")))
        self.assert_refused(done, said, "assembly_changed", "made from the assembler source five.S")
        done, said = self.molt_build(self.change())
        self.assert_built(done, said, "answer")
        self.assertEqual(said["functions_compared"], said["functions_proven"])

    def test_sources_that_are_compiled_to_one_place(self):
        """As $@ of another name, one after the other."""
        one = "%.o: %.c scale.h\n\t$(CC) $(CFLAGS) -c -o tmp.o $<\n\tmv tmp.o $@\n"
        self.write("Makefile", MAKEFILE.split("main.o: main.c")[0] + one)
        self.make_target()
        done, said = self.molt_build(self.diff(scale_h=lambda text: text.replace("2", "3")))
        self.assert_refused(done, said, "not_compiled", "tmp.o is compiled from several sources one after the other")

    def test_a_diff_of_the_makefile(self):
        self.make_target()
        both = {"Makefile": MAKEFILE, "answer.c": ANSWER}
        edited = {"Makefile": MAKEFILE.replace("-O2", "-O2 -DMORE"), "answer.c": ANSWER.replace(*DOUBLE)}
        diff = self.folder / "fix.patch"
        diff.write_text("".join(
            "".join(difflib.unified_diff(both[name].splitlines(True), edited[name].splitlines(True), f"a/{name}", f"b/{name}"))
            for name in both))  # fmt: skip
        done, said = self.molt_build(diff)
        self.assert_built(done, said, "answer")
        self.assertIn("the diff changes Makefile: 1 of 2 objects", said["notes"][0])

    def test_source_that_is_not_built(self):
        self.make_target()
        done, said = self.molt_build(self.change(), command=["make", "-s", "main.o"])
        self.assert_refused(done, said, "not_compiled", "answer.c")

    def test_diff_that_does_not_apply_or_is_in_already(self):
        self.make_target()
        diff = self.change()
        self.write("answer.c", ANSWER.replace(*DOUBLE))
        done, _ = self.molt_build(diff)
        self.assertEqual(done.returncode, 5)
        self.assertIn("in the tree already", done.stderr + done.stdout)
        self.write("answer.c", ANSWER.replace("count(x)", "count(x + 9)"))
        done, _ = self.molt_build(diff)
        self.assertEqual(done.returncode, 1)
        self.assertIn("does not apply", done.stderr + done.stdout)

    def test_what_cannot_be_left_out(self):
        """The rest needs the member; the size is said elsewhere; there is no such thing in the diff."""
        self.write("scale.h", "#define SLOTS 4\n" + COUNTERS)
        self.write("answer.c", COUNTING)
        self.make_target()
        needed = self.diff(
            scale_h=lambda text: text.replace("  char *name;\n", "  char *name;\n  int most;\n"),
            answer_c=lambda text: text.replace("  return", "  if (c->most < x) c->most = x;\n  return"),
        )
        done, said = self.molt_build(needed)
        self.assert_refused(done, said, "layout_changed", "24 -> 32 bytes; member most is new")
        self.assertNotIn("--leave-out", said["refusals"][0]["advice"])
        done, _ = self.molt_build(needed, "--leave-out", "counters")
        self.assertEqual(done.returncode, 1)
        self.assertIn("most", done.stderr + done.stdout)
        elsewhere = self.diff(
            scale_h=lambda text: text.replace("SLOTS 4", "SLOTS 8").replace("  long used;", "  int used;"),
            answer_c=lambda text: text.replace("return c->used", "return 1 + c->used"),
        )
        done, said = self.molt_build(elsewhere, "--leave-out", "counters")
        self.assert_refused(done, said, "layout_changed", "member slots: char[4] (4 bytes) -> char[8]")
        self.assertNotIn("--leave-out", said["refusals"][0]["advice"])
        for name in ("nowhere", "answer", "main.c"):
            done, _ = self.molt_build(elsewhere, "--leave-out", name)
            self.assertEqual(done.returncode, 1)
            self.assertIn(f"--leave-out={name}: the diff changes no file and no definition", done.stderr + done.stdout)
        # And the copy is clean.
        done, said = self.molt_build(self.diff(answer_c=lambda text: text.replace("return c->used", "return 5 + c->used")))
        self.assert_built(done, said, "answer")
        self.assertEqual(said["units_compiled"], 1)

    def test_build_that_fails_with_the_diff(self):
        self.make_target()
        done, _ = self.molt_build(self.diff(answer_c=lambda text: text.replace("SCALE", "NOWHERE")))
        self.assertEqual(done.returncode, 1)
        self.assertIn("NOWHERE", done.stderr + done.stdout)
        # And leaves nothing behind that the next run would trip over.
        done, said = self.molt_build(self.change())
        self.assert_built(done, said, "answer")

    def test_link_that_fails_with_the_diff(self):
        """The line that says why, and not the one that says that."""
        self.make_target()
        diff = self.diff(answer_c=lambda text: text.replace("return count(x)", "int nowhere(int); return nowhere(x)"))
        done, _ = self.molt_build(diff)
        self.assertEqual(done.returncode, 1)
        self.assertIn("answer.c:10: undefined reference to `nowhere'", done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
