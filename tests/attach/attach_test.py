#!/usr/bin/env python3
"""`molt` and programs that were built without Molt: attach, load, run, doctor."""
import contextlib
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

MOLT = str(Path(os.environ["MOLT_BIN"]) / "molt")
RUNTIME = Path(os.environ["MOLT_LIB"]) / "libmolt.so.0"
TARGETS = Path(os.environ["MOLT_TARGETS"])
MODULE = os.environ["MOLT_MODULE"]
EXAMPLES = Path(os.environ["MOLT_LIB"]) / "molt" / "examples"


def molt(*arguments):
    return subprocess.run([MOLT, *map(str, arguments)], capture_output=True, text=True, timeout=60)


def threads(pid):
    return {Path(f"/proc/{pid}/task/{t}/comm").read_text().strip() for t in os.listdir(f"/proc/{pid}/task")}


def own_threads(pid):
    """The agent's, with how often each has slept."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name = (task / "comm").read_text().strip()
            if task.name != str(pid) and name.startswith("molt"):
                found[name, task.name] = re.search(r"\nvoluntary_ctxt_switches:\s*(\d+)", (task / "status").read_text())[1]
    return found


def written_to(terminal):
    """All of it; one read gives what happens to be in the line discipline's buffer."""
    text = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the other side open, and nothing is left
        while part := os.read(terminal, 10000):
            text += part
    return text


class Target:
    """A program of TARGETS, ready; stopped at the end of the test."""

    def __init__(self, test, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        test.addCleanup(self.kill)
        self.pid = self.process.pid
        self.first = self.process.stdout.readline().split()
        test.assertEqual(self.first[0], "ready")

    def kill_only(self):
        self.process.kill()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def line(self):
        return self.process.stdout.readline().split()

    def tell(self, text="x"):
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def end(self):
        out, _ = self.process.communicate(input="x", timeout=60)
        return out.split()[-1], self.process.returncode


class Attach(unittest.TestCase):
    def start(self, *command):
        return Target(self, [str(TARGETS / command[0]), *command[1:]])

    def does(self, *arguments):
        done = molt(*arguments)
        self.assertEqual((done.returncode, done.stderr), (0, ""), arguments)
        return done.stdout

    def refuses(self, code, words, *arguments):
        done = molt(*arguments)
        self.assertEqual(done.returncode, code, done.stderr + done.stdout)
        self.assertIn(words, done.stderr + done.stdout)

    def test_hook(self):
        """What changes hooks puts the agent in, as load and apply do; what only looks at them does not."""
        for verb, code, words in ((["hook", "order", "--all-hooks", "plain"], 0, ""),
                                  (["hook", "order", "--all-hooks", "--reset"], 0, ""),
                                  (["hook", "order", "libc.so.6:open64", "plain"], 3, "libc.so.6:open64")):
            with self.subTest(verb):
                target = self.start("sleeper")
                for look in (["list"], ["hook", "list"], ["hook", "list", "-n"]):
                    self.refuses(3, "no control socket", *look, "-p", target.pid)
                self.assertNotIn("molt", Path(f"/proc/{target.pid}/maps").read_text())
                done = molt(*verb, "-p", target.pid)
                self.assertEqual(done.returncode, code, done.stderr)
                self.assertIn(words, done.stdout + done.stderr)
                self.assertIn("Hook", self.does("hook", "list", "-p", target.pid))
                self.assertEqual(target.end(), ("ok", 0))

    def test_removed_socket(self):
        """Somebody has cleared /run away: whoever attaches makes the socket anew, and the agent is as it was."""
        target = self.start("sleeper")
        self.does("attach", "-p", target.pid)
        folder = next(path for path in (Path(f"/run/molt/{target.pid}"), Path(f"/tmp/molt-{os.geteuid()}/{target.pid}"),
                                        Path(f"/run/user/{os.geteuid()}/molt/{target.pid}")) if path.is_dir())
        # Before anything was asked of it nobody is there who could be rung for.
        for lost, verb, words in ((folder / "control", ["attach", "--json"], '"started"'),
                                  (folder, ["attach", "--json"], '"started"'),
                                  (folder, ["load", "-v", MODULE], "attached: started"),
                                  (folder, ["load", "-v", EXAMPLES / "count_opens.so"], "attached: started")):
            shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
            self.refuses(3, f"somebody has removed its control socket, or its root is another one since; `molt attach -p "
                         f"{target.pid}` makes", "list", "-p", target.pid)
            done = molt(*verb, "-p", target.pid)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(words, done.stdout + done.stderr)
            self.does("list", "-p", target.pid)
        self.assertEqual(self.does("events", "-p", target.pid).count("was removed, and is made anew"), 4)
        for name in ("count_opens", "plain"):
            unloaded = json.loads(self.does("unload", "-p", target.pid, name, "--json"))
            self.assertEqual(unloaded["result"], "unmapped", unloaded)
        self.does("detach", "-p", target.pid)
        self.assertFalse(folder.exists())
        self.assertEqual(target.end(), ("ok", 0))

    def test_load(self):
        target = self.start("sleeper")
        self.refuses(3, "no control socket", "list", "-p", target.pid)
        self.assertEqual(self.does("load", "-p", target.pid, MODULE), "")
        self.assertIn("plain", self.does("list", "-p", target.pid))
        self.does("unload", "-p", target.pid, "plain")
        self.assertEqual(target.end(), ("ok", 0))

    def test_left_behind(self):
        """Before it executed another program it had Molt. Its socket is still there, and does not stand in the way."""
        target = Target(self, ["sh", "-c", f"echo ready; read line; exec {TARGETS}/sleeper"])
        self.does("attach", "-p", target.pid)
        self.assertIn("Molt is there", self.does("doctor", target.pid))
        target.tell("\n")
        self.assertEqual(target.line()[0], "ready")
        self.refuses(3, f"does not listen any more: it has executed another program, or what is there is from an earlier "
                     f"process of its number; `molt attach -p {target.pid}`", "list", "-p", target.pid)
        self.assertIn("attach: yes", self.does("doctor", target.pid))
        self.does("load", "-p", target.pid, MODULE)
        self.does("unload", "-p", target.pid, "plain")
        self.assertEqual(target.end(), ("ok", 0))

    def test_attach(self):
        target = self.start("sleeper")
        first, second = (json.loads(self.does("attach", "-p", target.pid, "--json")) for _ in "12")
        self.assertEqual(first["found"], "loaded")
        self.assertEqual(second["found"], "running")
        self.assertFalse(first["memfd"])
        self.assertIn("molt", threads(target.pid))
        self.assertEqual(target.end(), ("ok", 0))

    def is_asleep(self, *targets):
        """Two threads each (docs/design/attach.md has why not one), and neither wakes up."""
        def names():
            return [sorted(name for name, _ in own_threads(target.pid)) for target in targets]
        end = time.monotonic() + 45
        before = None
        while names() != [["molt", "molt-worker"]] * len(targets) or before != (
                before := [own_threads(target.pid) for target in targets]):
            self.assertLess(time.monotonic(), end, names())
            time.sleep(0.2)  # tidy: sleep-ok between two looks, bounded
        time.sleep(3.5)  # tidy: sleep-ok longer than anything of an agent waits before it ends
        self.assertEqual([own_threads(target.pid) for target in targets], before)

    def test_idle(self):
        """An agent of whom nothing is asked sleeps: after it has come, and after modules have come and gone."""
        attached = self.start("sleeper")
        run = Target(self, [MOLT, "run", "--", str(TARGETS / "sleeper")])
        self.does("attach", "-p", attached.pid)
        self.is_asleep(attached, run)
        for target in (attached, run):
            events = subprocess.Popen([MOLT, "events", "-f", "-p", str(target.pid)], stdout=subprocess.PIPE, text=True)
            self.addCleanup(events.communicate)
            self.addCleanup(events.kill)
            self.does("apply", "-p", target.pid, TARGETS / "attach_other_word.so")
            self.assertIn("other_word", events.stdout.readline())
            self.assertIn("molt-bell", threads(target.pid))  # somebody follows, who shall be told
            self.does("revert", "-p", target.pid, "other_word")
            events.kill()
            self.does("load", "-p", target.pid, MODULE)
            unloaded = json.loads(self.does("unload", "-p", target.pid, "plain", "--json"))
            self.assertEqual(unloaded["result"], "unmapped", unloaded)
        self.is_asleep(attached, run)
        for target in (attached, run):
            self.does("load", "-p", target.pid, EXAMPLES / "count_opens.so")
            self.does("unload", "-p", target.pid, "count_opens")
            self.does("detach", "-p", target.pid)
            self.assertEqual(own_threads(target.pid), {})
            self.assertEqual(target.end(), ("ok", 0))

    def test_a_saved_sigaction_is_no_signal_handler(self):
        target = self.start("sleeper", "saved")
        self.does("attach", "-p", target.pid)
        self.assertEqual(target.end(), ("ok", 0))

    def test_in_a_handler_for_good(self):
        """PostgreSQL makes processes in a handler that they never leave. Had that interrupted nothing but a wait, they are as
        good as any other."""
        for kind in ("handler", "handler_again"):
            with self.subTest(kind):
                target = self.start("sleeper", kind)
                while Path(f"/proc/{target.pid}/syscall").read_text().split()[0] != "0":
                    time.sleep(0.001)  # tidy: sleep-ok it says that it is ready before it reads
                os.kill(target.pid, signal.SIGUSR1)
                self.assertEqual(target.line(), ["inside"])
                while Path(f"/proc/{target.pid}/syscall").read_text().split()[0] != "0":
                    time.sleep(0.001)  # tidy: sleep-ok it says that it is inside before it reads
                self.assertIn("attach: yes, through thread", self.does("doctor", target.pid))
                self.does("load", "-p", target.pid, MODULE)
                self.does("unload", "-p", target.pid, "plain")
                self.assertEqual(target.end(), ("ok", 0))

    def test_name(self):
        """What it is called, whatever the program has written over its arguments."""
        target = self.start("sleeper", "retitled")
        self.does("attach", "-p", target.pid)
        self.assertIn(b"other/words: 1\0", Path(f"/proc/{target.pid}/cmdline").read_bytes())
        names = {answer["pid"]: answer.get("name") for answer in json.loads(molt("ps", "--json").stdout)["processes"]}
        self.assertEqual(names[target.pid], "sleeper")
        self.assertEqual(target.end(), ("ok", 0))

    def test_dry_run_changes_nothing(self):
        target = self.start("sleeper")
        self.refuses(3, "no control socket", "load", "-n", "-p", target.pid, MODULE)
        self.refuses(2, "attach", "attach", "-n", "-p", target.pid)
        self.assertNotIn("molt", Path(f"/proc/{target.pid}/maps").read_text())
        self.assertEqual(target.end(), ("ok", 0))

    def test_child_of_a_fork(self):
        target = self.start("sleeper", "fork")
        self.does("load", "-p", target.pid, MODULE)
        target.tell()
        word, child = target.line()
        self.assertEqual(word, "child")
        found = json.loads(self.does("attach", "-p", child, "--json"))["found"]
        self.assertEqual(found, "started")
        self.assertIn("plain", self.does("list", "-p", child))
        self.assertEqual(target.end(), ("ok", 0))

    def test_child_has_patches(self):
        """A child of a fork has what its parent had in force; verbs find it, and change it alone."""
        target = self.start("sleeper", "fork")
        patch = TARGETS / "attach_other_word.so"
        self.does("apply", "-p", target.pid, patch)
        target.tell()
        child = int(target.line()[1])
        self.assertNotIn("molt", threads(child))
        self.assertIn(f"forked; any verb with -p {child} makes it answer", self.does("ps"))
        self.assertNotIn("molt", threads(child))  # a look at all starts nothing
        self.assertIn("enabled", self.does("status", "-p", child))
        self.assertIn("molt", threads(child))
        self.does("revert", "--tree", child, "other_word")
        self.assertNotIn("other_word", self.does("status", "-p", child))
        self.assertIn("other_word", self.does("status", "-p", target.pid))
        self.assertEqual(target.end(), ("ok", 0))  # the child's word; the parent says none

    def test_child_keeps_patches(self):
        target = self.start("sleeper", "fork")
        self.does("apply", "-p", target.pid, TARGETS / "attach_other_word.so")
        target.tell()
        target.line()
        self.assertEqual(target.end(), ("patched", 0))

    def test_patch_many(self):
        with tempfile.TemporaryDirectory() as folder:
            program = shutil.copy(TARGETS / "sleeper", folder)
            many = [Target(self, [program]) for _ in range(12)]
            # On a terminal one sees how far it has got.
            terminal, stderr = pty.openpty()
            done = subprocess.run([MOLT, "apply", "--exe", program, TARGETS / "attach_other_word.so"],
                                  stdout=subprocess.PIPE, stderr=stderr, timeout=60)
            os.close(stderr)
            shown = written_to(terminal).decode()
            os.close(terminal)
            self.assertEqual((done.returncode, done.stdout), (0, b""), shown)
            self.assertIn("apply: 12 of 12 processes", shown)
            self.assertEqual(shown.count(" of 12 processes"), 12)
            self.assertTrue(shown.endswith("\x1b[K"), shown)
            # Other tests' processes may end meanwhile.
            patched = json.loads(molt("status", "--all", "--json").stdout)
            pids = {answer["pid"] for answer in patched if answer.get("patches")}
            self.assertTrue(pids.issuperset(target.pid for target in many))
            self.does("revert", "-p", many[0].pid, "other_word")
            for target in many[1:]:
                self.assertEqual(target.end(), ("patched", 0))
            self.assertEqual(many[0].end(), ("ok", 0))

    def test_through_memory(self):
        if os.geteuid() != 0:
            self.skipTest("needs root to take a path away from a process")
        with tempfile.TemporaryDirectory() as folder:
            hidden = Path(folder) / "hidden"
            hidden.mkdir(mode=0o700)
            shutil.copy(RUNTIME, hidden / "libmolt.so.0")
            program = shutil.copy(TARGETS / "sleeper", folder)
            os.chmod(folder, 0o755)
            target = Target(self, ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program])
            os.environ["MOLT_RUNTIME"] = str(hidden / "libmolt.so.0")
            self.addCleanup(os.environ.pop, "MOLT_RUNTIME")
            report = json.loads(self.does("attach", "-p", target.pid, "--json"))
            self.assertTrue(report["memfd"])
            self.does("attach", "-p", target.pid)
            self.assertEqual(target.end(), ("ok", 0))

    def test_run(self):
        target = Target(self, [MOLT, "run", "--", str(TARGETS / "sleeper")])
        self.assertEqual(target.first, ["ready", "-"])  # nothing left in its environment
        self.does("load", "-p", target.pid, MODULE)
        self.assertEqual(target.end(), ("ok", 0))

    def test_run_with_children(self):
        """Asked for, what it starts has Molt too; otherwise not."""
        for flag, expected in ((["--children"], True), ([], False)):
            target = Target(self, [MOLT, "run", *flag, "--", "sh", "-c", f"{TARGETS}/sleeper; exit $?"])
            child = int(Path(f"/proc/{target.pid}/task/{target.pid}/children").read_text().split()[0])
            self.assertEqual("molt" in threads(child), expected)
            if expected:
                self.does("list", "-p", child)
            self.assertEqual(target.end(), ("ok", 0))

    def test_manners(self):
        """No handler until one is needed, and no descriptor, environment or mask is changed by coming."""
        def seen(pid):
            status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            of_libc = 3 << 31  # the C library's own two, with the first thread that it makes
            return (int(status["SigCgt"], 16) & ~of_libc,
                    {name: status[name].strip() for name in ("SigIgn", "SigBlk", "FDSize", "Umask")},
                    sorted(os.listdir(f"/proc/{pid}/fd")), Path(f"/proc/{pid}/environ").read_bytes(),
                    os.readlink(f"/proc/{pid}/cwd"))

        target = self.start("sleeper")
        before = seen(target.pid)
        self.does("attach", "-p", target.pid)
        self.assertEqual(seen(target.pid), before)
        self.does("load", "-p", target.pid, MODULE)
        self.does("unload", "-p", target.pid, "plain")
        self.assertEqual(seen(target.pid), before)
        # A jump needs SIGTRAP, and nothing else.
        self.does("load", "-p", target.pid, EXAMPLES / "count_opens.so")
        trap = 1 << signal.SIGTRAP - 1
        self.assertEqual(seen(target.pid)[0], trap)
        self.does("unload", "-p", target.pid, "count_opens")
        self.does("detach", "-p", target.pid)
        self.assertEqual(target.end(), ("ok", 0))

    def test_run_keeps_other_preloads(self):
        done = subprocess.run(["env", "LD_PRELOAD=libm.so.6", MOLT, "run", "--", "printenv", "LD_PRELOAD"],
                              capture_output=True, text=True)
        self.assertEqual((done.stdout, done.returncode), ("libm.so.6\n", 0), done.stderr)

    def test_run_nothing(self):
        self.refuses(3, "cannot run /no/such/program", "run", "--", "/no/such/program")

    def test_static_programs(self):
        target = self.start("sleeper_static")
        for arguments in (["doctor", target.pid], ["attach", "-p", target.pid],
                          ["load", "-p", target.pid, MODULE]):
            self.refuses(5, "linked statically", *arguments)
        self.assertEqual(target.end(), ("ok", 0))
        # What is mapped is the other program's: valgrind's own would be changed, and ended.
        target = self.start("sleeper_static", "interprets")
        for arguments in (["doctor", target.pid], ["attach", "-p", target.pid],
                          ["load", "-p", target.pid, MODULE]):
            self.refuses(5, "another program executes it", *arguments)
        self.assertEqual(target.end(), ("ok", 0))
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder, "script")
            script.write_text(f"#!{TARGETS}/sleeper_static\n")
            script.chmod(0o755)
            for program in (TARGETS / "sleeper_static", script):
                self.refuses(5, f"{program} cannot be run with Molt: it is linked statically", "run", "--", program)
            if os.geteuid() == 0:
                gains = shutil.copy(TARGETS / "sleeper", folder)
                os.chown(gains, 65534, -1)
                os.chmod(gains, 0o4755)
                self.refuses(5, "it gains privileges", "run", "--", gains)

    def test_sanitized_programs(self):
        """Their runtimes would end them: refused before anything is touched, and by the doctor."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "waits.c")
            source.write_text('#include <stdio.h>\nint main(void) { puts("ready"); fflush(stdout); getchar(); puts("ok"); }\n')
            for compiler, kind in (("gcc", "thread"), ("clang", "thread"), ("clang", "memory"), ("gcc", "address"),
                                   ("clang", "address"), ("gcc", "leak"), ("gcc", "undefined")):
                program = Path(folder, f"{compiler}_{kind}")
                subprocess.run([compiler, f"-fsanitize={kind}", source, "-o", program], check=True)
                target = Target(self, [program])
                with self.subTest(program.name):
                    if kind in ("thread", "memory"):
                        for arguments in (["doctor", target.pid], ["attach", "-p", target.pid], ["run", "--", program],
                                          ["load", "-p", target.pid, MODULE]):
                            self.refuses(5, f"built with the {kind} sanitizer", *arguments)
                    else:
                        hook = EXAMPLES / "count_opens.so"
                        self.does("load", "-p", target.pid, hook)
                        self.does("unload", "-p", target.pid, "count_opens")
                        self.does("detach", "-p", target.pid)
                    self.assertEqual(target.end(), ("ok", 0))

    def test_in_straits(self):
        """No memory may become code; all signals are blocked; nobody may look at it."""
        kinds = ["no_exec", "deaf"] + (["hidden", "given_up", "no_exec_filter"] if os.geteuid() == 0 else [])
        for kind in kinds:
            with self.subTest(kind):
                target = self.start("sleeper", kind)
                # No reason against it, so none is told.
                self.assertIn("hooks and patches of the program: yes", self.does("doctor", target.pid))
                self.does("apply", "-p", target.pid, TARGETS / "attach_other_word.so")
                self.does("revert", "-p", target.pid, "other_word")
                self.does("load", "-p", target.pid, EXAMPLES / "count_opens.so")
                self.assertIn("open64", self.does("hook", "list", "-p", target.pid))
                unloaded = json.loads(self.does("unload", "-p", target.pid, "count_opens", "--json"))
                self.assertEqual(unloaded["result"], "unmapped", unloaded)
                self.does("detach", "-p", target.pid)
                self.assertEqual(target.end(), ("ok", 0))

    def test_dies_meanwhile(self):
        """Killed at any moment of it: whoever attaches says so in one line, and does not wait for it."""
        told_so = 0
        for n in range(40):
            target = self.start("sleeper")
            attaching = subprocess.Popen([MOLT, "load", "-p", str(target.pid), MODULE], stderr=subprocess.PIPE, text=True)
            time.sleep(random.random() * 0.02)  # tidy: sleep-ok the moment is random on purpose
            target.kill_only()
            _, told = attaching.communicate(timeout=60)
            # Not 6, which is a time-out.
            self.assertIn(attaching.returncode, (0, 1, 3, 5), told)
            self.assertEqual(len(told.splitlines()), attaching.returncode != 0, told)
            told_so += attaching.returncode != 0
            target.kill()
        print(f"{told_so} of 40 died in the middle")

    def test_killed_in_the_middle_of_any_verb(self):
        """kill -9 of the command line, whatever it does: the target works, and does as the next one says."""
        patch = TARGETS / "attach_other_word.so"
        cycle = [("load", MODULE), ("apply", patch), ("hook", "list"), ("load", EXAMPLES / "count_opens.so"), ("list",),
                 ("unload", "count_opens"), ("revert", "other_word"), ("unload", "plain")]
        target = self.start("sleeper")
        killed = 0
        for n in range(64):
            asking = subprocess.Popen([MOLT, *map(str, cycle[n % len(cycle)]), "-p", str(target.pid)],
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(random.random() * 0.004)  # tidy: sleep-ok the moment is random on purpose
            asking.kill()
            killed += asking.wait() == -signal.SIGKILL
        # What was begun comes to its end, or was given up; from either one can go on.
        self.does("attach", "-p", target.pid)
        end = time.monotonic() + 30
        while modules := json.loads(self.does("list", "-p", target.pid, "--json"))["modules"]:
            # A patch whose apply was cut short is a module that is not installed, or one that is.
            told = [molt(verb, "-p", target.pid, module["name"]).stderr for module in modules
                    for verb in (("revert", "unload") if module["name"] == "other_word" else ("unload",))]
            self.assertLess(time.monotonic(), end, told)
        for verb in cycle:
            self.does(*verb, "-p", target.pid)
        # An unload that was cut short may have left its module for later.
        while (detached := molt("detach", "-p", target.pid)).returncode != 0:
            self.assertRegex(detached.stderr, "still in memory|is under way")
            self.assertLess(time.monotonic(), end, self.does("gc", "-p", target.pid))
        self.assertGreater(killed, 8)
        self.assertEqual(target.end(), ("ok", 0))

    def test_in_namespaces(self):
        """Its own pids, mounts and /tmp: found and addressed by the pid that is seen here."""
        own = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        if subprocess.run([*own, "true"], capture_output=True).returncode != 0:
            self.skipTest("no namespaces may be made here")
        outer = Target(self, [*own, "sh", "-c", "mount -t tmpfs none /tmp; mount -t tmpfs none /run; "
                              f"exec {TARGETS}/sleeper"])
        inner = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()[0])
        self.assertIn("in a namespace of its own: mount, pid", self.does("doctor", inner))
        self.does("load", "-p", inner, EXAMPLES / "count_opens.so")
        self.assertIn("count_opens", self.does("list", "-p", inner))
        self.assertEqual(json.loads(self.does("unload", "-p", inner, "count_opens", "--json"))["result"], "unmapped")
        self.does("detach", "-p", inner)
        self.assertEqual(outer.end()[0], "ok")

    def test_in_a_container_without_root(self):
        """Where somebody who is not root has made the user namespace, root is nobody; and is served all the same."""
        own = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "--user", "--map-root-user"]
        if os.geteuid() != 0 or subprocess.run([*own, "true"], capture_output=True).returncode != 0:
            self.skipTest("needs root, and user namespaces that anybody may make")
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            target = Target(self, [*own, shutil.copy(TARGETS / "sleeper", folder)])
            self.assertIn("in a namespace of its own: user", self.does("doctor", target.pid))
            self.does("load", "-p", target.pid, EXAMPLES / "count_opens.so")
            self.assertIn("count_opens", self.does("list", "-p", target.pid))
            unloaded = json.loads(self.does("unload", "-p", target.pid, "count_opens", "--json"))
            self.assertEqual(unloaded["result"], "unmapped")
            self.does("detach", "-p", target.pid)
            self.assertEqual(target.end(), ("ok", 0))

    def test_detach(self):
        target = self.start("sleeper")
        self.does("load", "-p", target.pid, MODULE)
        self.refuses(1, "modules are loaded: plain", "detach", "-p", target.pid)
        self.refuses(1, "modules are loaded: plain", "detach", "-n", "-p", target.pid)
        self.does("unload", "-p", target.pid, "plain")
        self.does("detach", "-n", "-p", target.pid)
        self.does("list", "-p", target.pid)
        for _ in range(3):
            self.does("detach", "-p", target.pid)
            self.assertEqual(os.listdir(f"/proc/{target.pid}/task"), [str(target.pid)])
            self.assertEqual(len(os.listdir(f"/proc/{target.pid}/fd")), 3)
            self.refuses(3, "no control socket", "list", "-p", target.pid)
            self.assertEqual(json.loads(self.does("attach", "-p", target.pid, "--json"))["found"], "started")
        self.assertEqual(target.end(), ("ok", 0))

    def test_detached_by_several(self):
        """None of them takes away what came back meanwhile, nor the file of a module that is being loaded."""
        target = self.start("sleeper")
        for n in range(16):
            self.does("attach", "-p", target.pid)
            asking = [subprocess.Popen([MOLT, *verb, "-p", str(target.pid)], stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
                      for verb in (["detach", "--timeout", "1"], ["load", MODULE], ["detach", "--timeout", "1"])[n % 2:]]
            for one in asking:
                one.wait()
            copies = [line for line in Path(f"/proc/{target.pid}/maps").read_text().splitlines() if "/store/" in line]
            self.assertEqual([line for line in copies if line.endswith("(deleted)")], [])
            # Whoever is there answers, and can be asked to leave.
            end = time.monotonic() + 30
            while own_threads(target.pid):
                told = [molt(*verb, "-p", target.pid).stderr for verb in (["unload", "plain"], ["detach"])]
                self.assertLess(time.monotonic(), end, told)
        self.assertEqual(target.end(), ("ok", 0))

    def test_as_soon_as_it_is_there(self):
        """By several at once, to a program that has only just been executed: each waits for its loader, and for the others."""
        for _ in range(12):
            program = subprocess.Popen([TARGETS / "sleeper"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.addCleanup(program.communicate)
            self.addCleanup(program.kill)
            asking = [subprocess.Popen([MOLT, "load", "-p", str(program.pid), MODULE], stderr=subprocess.PIPE, text=True)
                      for _ in range(3)]
            self.assertEqual([one.communicate(timeout=60)[1] for one in asking], ["", "", ""])
            self.assertEqual(program.communicate(input="x", timeout=60)[0].split()[-1], "ok")

    def test_many(self):
        """Selected by tree and by program; one of them cannot, and is told by one line."""
        parent = self.start("sleeper", "fork")
        parent.tell()
        child = int(parent.line()[1])
        found = json.loads(self.does("attach", "--tree", parent.pid, "--json"))
        self.assertEqual(sorted(answer["pid"] for answer in found), sorted([parent.pid, child]))
        with tempfile.TemporaryDirectory() as folder:
            program = shutil.copy(TARGETS / "sleeper", folder)
            many = [Target(self, [program]) for _ in range(12)]
            os.kill(many[3].pid, signal.SIGSTOP)
            told = molt("doctor", "--exe", program, "--tree", parent.pid)
            self.assertEqual((told.returncode, told.stdout.count("can be attached to"), told.stdout.count("Molt is there"),
                              told.stdout.count("cannot be")), (7, 11, 2, 1), told.stdout + told.stderr)
            done = molt("load", "--exe", program, MODULE)
            os.kill(many[3].pid, signal.SIGCONT)
            self.assertEqual(done.returncode, 7)
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
            self.assertIn(f"process {many[3].pid} (sleeper) cannot be attached to: it is stopped", done.stderr)
            self.assertEqual(sum("plain" in molt("list", "-p", t.pid).stdout for t in many), 11)
            for target in many:
                self.assertEqual(target.end(), ("ok", 0))
        self.assertEqual(parent.end(), ("ok", 0))

    def test_filtered_programs(self):
        # membarrier may fail, socket may not; neither may kill.
        membarrier, socket = 324, 41
        for arguments, word in ((["filtered"], ""), ([f"filtered-{membarrier}", "38"], ""),
                                ([f"filtered-{membarrier}"], "kills for it"),
                                ([f"filtered-{socket}", "1"], "answers it with errno 1")):
            with self.subTest(arguments):
                target = self.start("sleeper", *arguments)
                if os.geteuid() != 0:
                    self.refuses(4, "be root", "attach", "-p", target.pid)
                elif word:
                    self.refuses(5, word, "doctor", target.pid)
                    for words in (f"process {target.pid} (sleeper) cannot be attached to: its seccomp filter", word):
                        self.refuses(4, words, "attach", "-p", target.pid)
                    self.assertNotIn("molt", Path(f"/proc/{target.pid}/maps").read_text())
                else:
                    self.does("doctor", target.pid)
                    self.does("load", "-p", target.pid, MODULE)
                    self.does("unload", "-p", target.pid, "plain")
                self.assertEqual(target.end(), ("ok", 0))

    def test_doctor(self):
        target = self.start("sleeper")
        told = self.does("doctor", target.pid)
        self.assertIn("can be attached to", told)
        self.assertIn("hooks and patches of the program: yes\n", told)
        redis = shutil.which("redis-server")
        if redis:  # stripped, as Debian ships it
            with tempfile.TemporaryDirectory() as folder:
                other = subprocess.Popen([redis, "--port", "0", "--unixsocket", f"{folder}/socket", "--save", ""],
                                         stdout=subprocess.DEVNULL)
                try:
                    end = time.monotonic() + 20
                    while not Path(folder, "socket").exists() and time.monotonic() < end:
                        time.sleep(0.005)  # tidy: sleep-ok until it has begun, bounded
                    self.assertRegex(self.does("doctor", other.pid), r"program: yes, only those that it exports "
                                     r"\(stripped; .*\); for the others, install its debug symbols[;\n]")
                finally:
                    other.terminate()
                    other.wait()
        self.does("attach", "-p", target.pid)
        self.assertIn("Molt is there", self.does("doctor", target.pid))
        busy = Target(self, ["sh", "-c", "echo ready; while :; do :; done"])
        self.assertIn("attach: yes, once a thread makes a plain system call (threads now: 1 running, 0 waiting for "
                      "locks or in other calls, 0 in signal handlers, 0 with little stack left); it is",
                      self.does("doctor", busy.pid))
        threads = self.start("sleeper", "threads", "1")
        other = max(map(int, os.listdir(f"/proc/{threads.pid}/task")))
        self.assertIn(f"process {threads.pid} (sleeper): can be attached to", self.does("doctor", other))
        headless = self.start("sleeper", "headless")
        while "zombie" not in Path(f"/proc/{headless.pid}/status").read_text():
            time.sleep(0.01)  # tidy: sleep-ok until its first thread has ended, after "ready"
        self.refuses(5, "its first thread has ended while others run on", "doctor", headless.pid)
        self.assertEqual(headless.end(), ("ok", 0))
        self.refuses(5, "no such process", "doctor", 1 << 22)
        self.refuses(5, "thread of the kernel", "doctor", 2)
        self.refuses(2, "which process", "doctor")

    def test_another_user(self):
        if os.geteuid() != 0:
            self.skipTest("needs root to become somebody else")
        target = self.start("sleeper")
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            program = shutil.copy(MOLT, folder)
            done = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program,
                                   "doctor", str(target.pid)], capture_output=True, text=True)
            # Of one's own that asked not to be looked at something else is to be said.
            sleeper = shutil.copy(TARGETS / "sleeper", folder)
            hidden = Target(self, ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sleeper, "hidden"])
            listed = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program,
                                     "list", "-p", str(hidden.pid)], capture_output=True, text=True)
            self.assertEqual((listed.returncode, hidden.end()), (4, ("ok", 0)))
            self.assertIn("may not be looked at, although it is yours", listed.stderr)
        self.assertEqual(done.returncode, 5, done.stderr)
        self.assertIn("belongs to another user", done.stdout)
        self.assertEqual(target.end(), ("ok", 0))


if __name__ == "__main__":
    # What this was started with may fill a descriptor table beyond its first 64 entries, and targets would be
    # born with a large one, which cannot be seen to grow.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    unittest.main()
