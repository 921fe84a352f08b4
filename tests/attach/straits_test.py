#!/usr/bin/env python3
"""Programs in straits: no descriptor left, no folder to write to, another root, no /proc, other rights,
another C library, another architecture. Each is served, or told why not."""
import concurrent.futures
import contextlib
import ctypes
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

import attach_test
from attach_test import EXAMPLES, MODULE, MOLT, TARGETS, Target, molt

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
PATCH = TARGETS / "attach_other_word.so"


def mounts_allowed():
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


class Straits(unittest.TestCase):
    start = attach_test.Attach.start
    does = attach_test.Attach.does
    refuses = attach_test.Attach.refuses

    def with_mounts(self, script, *command):
        """A program in mounts of its own, which `script` makes; from a folder that those leave alone."""
        if not mounts_allowed():
            self.skipTest("needs root, and mounts of one's own")
        return Target(self, ["unshare", "-m", "sh", "-c", f"{script}; exec \"$@\"", "sh", *map(str, command)])

    def folder(self):
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        os.chmod(made.name, 0o755)
        return Path(made.name)

    def full_service(self, target):
        """Modules, hooks and patches come and go, proven; then nothing is left."""
        self.does("load", "-p", target.pid, MODULE)
        self.assertIn("plain", self.does("list", "-p", target.pid))
        unloaded = json.loads(self.does("unload", "-p", target.pid, "plain", "--json"))
        self.assertEqual(unloaded["result"], "unmapped", unloaded)
        self.does("load", "-p", target.pid, EXAMPLES / "count_opens.so")
        self.assertIn("open64", self.does("hook", "list", "-p", target.pid))
        unloaded = json.loads(self.does("unload", "-p", target.pid, "count_opens", "--json"))
        self.assertEqual(unloaded["result"], "unmapped", unloaded)
        self.does("apply", "-p", target.pid, PATCH)
        self.does("revert", "-p", target.pid, "other_word")
        self.does("apply", "-p", target.pid, PATCH)
        self.assertIn("enabled", self.does("status", "-p", target.pid))
        self.assertEqual(target.end(), ("patched", 0))

    def test_thousands_of_threads(self):
        target = self.start("sleeper", "threads", "3000")
        self.assertEqual(len(os.listdir(f"/proc/{target.pid}/task")), 3001)
        self.full_service(target)

    def test_hundreds(self):
        """In parallel, with progress; each that cannot is told in a line of its own, and the others are served."""
        # One of another user is among them, where there is somebody else to be and he may trace.
        yama = Path("/proc/sys/kernel/yama/ptrace_scope")
        has_stranger = os.geteuid() == 0 and (not yama.exists() or yama.read_text().strip() == "0")
        user = NOBODY if has_stranger else []
        folder = self.folder()
        program, static, shy, tool, runtime, module, patch = (
            shutil.copy(file, folder) for file in (TARGETS / "sleeper", TARGETS / "sleeper_static", TARGETS / "shy", MOLT,
                                                   attach_test.RUNTIME, MODULE, PATCH))
        as_user, as_stranger = " ".join(user), "setpriv --reuid=1 --regid=1 --clear-groups"
        script = (f"exec 3<&0; for i in $(seq 100); do {as_user} {program} <&3 & done; {as_user} {static} <&3 & "
                  f"{as_user} {shy} <&3 & {f'{as_stranger} {program} <&3 &' if has_stranger else ''} "
                  f"exec {as_user} sleep 1000")
        parent = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for ending in (parent.stdout.close, parent.wait, parent.kill, parent.stdin.close):
            self.addCleanup(ending)
        for _ in range(102 + has_stranger):
            self.assertTrue(parent.stdout.readline().startswith("ready"))
        end = time.monotonic() + 20
        while Path(f"/proc/{parent.pid}/comm").read_text() != "sleep\n":
            self.assertLess(time.monotonic(), end)
            time.sleep(0.005)  # tidy: sleep-ok until it is what it will be, bounded
        children = list(map(int, Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()))
        by_program = {}
        for pid in children:
            by_program.setdefault((os.readlink(f"/proc/{pid}/exe"), os.stat(f"/proc/{pid}").st_uid), []).append(pid)
        mine = os.stat(f"/proc/{parent.pid}").st_uid
        served = by_program[program, mine]
        lines = {by_program[static, mine][0]: "linked statically", by_program[shy, mine][0]: "has ended"}
        stranger = {by_program[program, 1][0]: "belongs to another user"} if has_stranger else {}
        self.assertEqual(len(served), 100)

        def told(count, expected, verb, *arguments):
            terminal, stderr = pty.openpty()
            reader = concurrent.futures.ThreadPoolExecutor(1).submit(attach_test.written_to, terminal)
            done = subprocess.run([*user, tool, verb, *map(str, arguments)], stdout=subprocess.PIPE, stderr=stderr,
                                  text=True, timeout=60, env=dict(os.environ, MOLT_RUNTIME=runtime))
            os.close(stderr)
            progress, _, rest = reader.result().decode().rpartition("\x1b[K")
            os.close(terminal)
            self.assertEqual((done.returncode, done.stdout), (7 if expected else 0, ""), rest)
            self.assertIn(f"{verb}: {count} of {count} processes", progress)
            self.assertEqual(len(rest.splitlines()), len(expected), rest)
            for pid, words in expected.items():
                self.assertRegex(rest, rf"\b{pid}\b.*({words})")

        told(len(children) + 1, lines | stranger, "attach", "--tree", parent.pid)
        self.assertEqual([pid for pid in served if "molt" not in attach_test.threads(pid)], [])
        # What program another user's process runs may not be seen.
        told(100, {}, "load", "--exe", program, module)
        told(100, {}, "apply", "--exe", program, patch)
        answers = json.loads(subprocess.run([*user, tool, "status", "--all", "--json"], stdout=subprocess.PIPE).stdout)
        self.assertEqual(set(served) - {answer["pid"] for answer in answers if answer.get("patches")}, set())
        parent.stdin.close()
        said = sorted(parent.stdout.readline() for _ in range(101 + has_stranger))
        self.assertEqual(said, ["ok\n"] * (1 + has_stranger) + ["patched\n"] * 100)

    def test_stripped(self):
        """What a stripped program does not say of its own functions, the file of its debug symbols does, found by
        build-id."""
        folder = self.folder()
        whole, program = TARGETS / "sleeper", folder / "sleeper"
        subprocess.run(["strip", "-o", program, whole], check=True)
        target = Target(self, [program])
        self.assertIn("only those that it exports (stripped", self.does("doctor", target.pid))
        self.refuses(1, "stripped; no debug file /usr/lib/debug/.build-id/", "apply", "-p", target.pid, PATCH)
        self.assertEqual(target.end(), ("ok", 0))
        notes = subprocess.run(["readelf", "-n", whole], capture_output=True, text=True, check=True).stdout
        build_id = notes.split("Build ID: ")[1].split()[0]
        symbols = folder / "debug/.build-id" / build_id[:2]
        symbols.mkdir(parents=True)
        subprocess.run(["objcopy", "--only-keep-debug", whole, symbols / f"{build_id[2:]}.debug"], check=True)
        if not Path("/usr/lib/debug").is_dir():
            self.skipTest("needs /usr/lib/debug, as libc6-dbg makes it")
        target = self.with_mounts("mount --make-rprivate /; "
                                  f"mount --bind {folder}/debug /usr/lib/debug", program)
        self.full_service(target)

    def limit(self, target):
        lines = Path(f"/proc/{target.pid}/limits").read_text().splitlines()
        return next(line.split()[3:5] for line in lines if line.startswith("Max open files"))

    def test_no_descriptor_left(self):
        target = self.start("sleeper", "full", "64", "1024")
        self.assertEqual(len(os.listdir(f"/proc/{target.pid}/fd")), 64)
        self.assertIn("which are used up, is raised for moments", self.does("doctor", target.pid))
        self.does("attach", "-p", target.pid)
        self.assertEqual(self.limit(target), ["64", "1024"])
        self.does("load", "-p", target.pid, MODULE)
        self.assertEqual(self.limit(target), ["64", "1024"])
        self.does("unload", "-p", target.pid, "plain")
        self.assertEqual(len(os.listdir(f"/proc/{target.pid}/fd")), 64)
        self.full_service(target)

    def test_no_descriptor_may_be_had(self):
        folder = self.folder()
        program = shutil.copy(TARGETS / "sleeper", folder)
        target = Target(self, [*(NOBODY if os.geteuid() == 0 else []), program, "full", "64", "64"])
        told = self.does("doctor", target.pid)
        self.assertIn("modules: no, all descriptors that it may have are in use", told)
        self.assertIn("hooks and patches of libraries: no", told)
        self.does("attach", "-p", target.pid)  # needs none of the process's
        self.assertEqual(self.does("list", "-p", target.pid).count("\n"), 1)
        for verb, file in (("load", MODULE), ("apply", PATCH)):
            self.refuses(1, f"raise it: prlimit --pid {target.pid} --nofile", verb, "-p", target.pid, file)
        self.does("detach", "-p", target.pid)
        self.assertEqual(target.end(), ("ok", 0))

    def test_no_folder(self):
        """Neither /run nor /tmp may be written to, and the network is another one."""
        script = "mount --make-rprivate /; for d in /run /tmp; do mount -t tmpfs -o ro,mode=755 none $d; done"
        elsewhere = tempfile.TemporaryDirectory(dir="/var/tmp")
        self.addCleanup(elsewhere.cleanup)
        os.chmod(elsewhere.name, 0o755)
        program = shutil.copy(TARGETS / "sleeper", elsewhere.name)
        for command in ([program], [*NOBODY, program], ["unshare", "-n", program]):
            with self.subTest(command):
                target = self.with_mounts(script, *command)
                self.does("attach", "-p", target.pid)
                names = Path(f"/proc/{target.pid}/net/unix").read_text()
                self.assertIn(f"@molt/{target.pid}/", names)
                # Anybody may have a name like it; whose it is the kernel says.
                with socket.socket(socket.AF_UNIX) as other:
                    other.bind(f"\0molt/{target.pid}/0")
                    other.listen(0)
                    with socket.socket(socket.AF_UNIX) as fills_its_queue:
                        fills_its_queue.connect(f"\0molt/{target.pid}/0")
                        self.full_service(target)

    def root_for(self, *, proc):
        folder = self.folder()
        for name in ("usr", "proc", "tmp"):
            (folder / name).mkdir()
        for name in ("lib", "lib64"):
            (folder / name).symlink_to(f"usr/{name}")
        os.chmod(folder / "tmp", 0o1777)
        script = f"mount --make-rprivate /; mount --bind /usr {folder}/usr"
        return folder, script + (f"; mount -t proc proc {folder}/proc" if proc else "")

    def test_another_root(self):
        folder, script = self.root_for(proc=True)
        target = self.with_mounts(script, TARGETS / "sleeper", "root", folder)
        self.assertIn("in a root of its own", self.does("doctor", target.pid))
        self.assertTrue(json.loads(self.does("attach", "-p", target.pid, "--json"))["memfd"])
        self.full_service(target)

    def test_a_root_without_proc(self):
        """No name for the runtime in memory; and nobody can be looked at."""
        folder, script = self.root_for(proc=False)
        target = self.with_mounts(script, TARGETS / "sleeper", "root", folder)
        told = self.does("doctor", target.pid)
        self.assertIn("there is no /proc in its root, so what is unloaded stays in memory", told)
        self.assertIn("hooks and patches of libraries: no, there is no /proc", told)
        self.does("load", "-p", target.pid, MODULE)
        self.assertEqual([*(folder / "tmp").glob(".libmolt*")], [])
        for verb, file in (("load", EXAMPLES / "count_opens.so"), ("apply", PATCH)):
            done = molt(verb, "-p", target.pid, file)
            self.assertNotEqual(done.returncode, 0, done.stdout)
            self.assertRegex(done.stderr, "there is no /proc in its root; mount one there|cannot open /proc/self/maps")
        unloaded = json.loads(molt("unload", "-p", target.pid, "plain", "--json").stdout)
        self.assertEqual(unloaded["result"], "resident", unloaded)
        self.assertEqual(target.end(), ("ok", 0))

    def test_a_root_with_nothing(self):
        """Neither /proc nor a folder for copies of modules: the doctor says what the verbs do."""
        folder, script = self.root_for(proc=False)
        (folder / "tmp").rmdir()
        target = self.with_mounts(script, TARGETS / "sleeper", "root", folder)
        told = self.does("doctor", target.pid)
        self.assertIn("modules: no, there is neither a /proc in its root nor a folder that it may write a copy to", told)
        self.assertIn("hooks and patches of libraries: no, they come in modules", told)
        self.does("attach", "-p", target.pid)
        for verb, file in (("load", MODULE), ("load", EXAMPLES / "count_opens.so"), ("apply", PATCH)):
            self.refuses(5, "there is no /proc in its root; mount one; and on disk: no private directory can be had",
                         verb, "-p", target.pid, file)
        self.does("detach", "-p", target.pid)
        self.assertEqual(target.end(), ("ok", 0))

    def test_set_uid(self):
        if os.geteuid() != 0:
            self.skipTest("needs root for a program that gains rights")
        folder = self.folder()
        program = shutil.copy(TARGETS / "sleeper", folder)
        os.chmod(program, 0o4755)
        target = Target(self, [*NOBODY, program])
        stranger = shutil.copy(MOLT, folder)
        done = subprocess.run([*NOBODY, stranger, "doctor", str(target.pid)], capture_output=True, text=True)
        self.assertEqual(done.returncode, 5)
        self.assertRegex(done.stdout, "another user|gained privileges")
        self.full_service(target)

    def test_no_near_memory(self):
        target = self.start("sleeper", "crowded")
        told = self.does("doctor", target.pid)
        self.assertIn("hooks and patches of libraries: no, no 64 KiB are free within 2 GiB of the C library", told)
        self.assertIn("hooks and patches of the program: no, no 64 KiB are free within 2 GiB of its code", told)
        self.does("load", "-p", target.pid, MODULE)
        for verb, file in (("load", EXAMPLES / "count_opens.so"), ("apply", PATCH)):
            self.refuses(1, "no 64 KiB are free within 2 GiB", verb, "-p", target.pid, file)
        self.assertEqual(json.loads(self.does("unload", "-p", target.pid, "plain", "--json"))["result"], "unmapped")
        self.does("detach", "-p", target.pid)
        self.assertEqual(target.end(), ("ok", 0))

    def test_yama(self):
        """Each setting of a machine that restricts tracing, as the tools see it."""
        if not mounts_allowed():
            self.skipTest("needs root, and mounts of one's own")
        folder = self.folder()
        program = shutil.copy(MOLT, folder)
        target = Target(self, [*NOBODY, shutil.copy(TARGETS / "sleeper", folder)])
        script = ("mount --make-rprivate /; mount -t tmpfs none /proc/sys; mkdir -p /proc/sys/kernel/yama; "
                  "echo $1 >/proc/sys/kernel/yama/ptrace_scope; shift; exec \"$@\"")
        for scope, user, words in ((3, [], "forbidden until the next boot"), (2, NOBODY, "only root may trace"),
                                   (1, NOBODY, "only descendants may be traced"), (1, [], "")):
            with self.subTest(scope):
                for verb in (["doctor", str(target.pid)], ["attach", "-p", str(target.pid)]):
                    done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", str(scope), *user, program, *verb],
                                          capture_output=True, text=True,
                                          env=dict(os.environ, MOLT_RUNTIME=str(attach_test.RUNTIME)))
                    self.assertEqual(done.returncode == 0, not words, done.stdout + done.stderr)
                    self.assertIn(words, done.stdout + done.stderr)
        self.assertEqual(target.end(), ("ok", 0))

    def test_traced_by_another(self):
        target = self.start("sleeper")
        libc = ctypes.CDLL(None, use_errno=True)
        seize, detach = 0x4206, 17
        self.assertEqual(libc.ptrace(seize, target.pid, None, None), 0)
        for verb in (["doctor", target.pid], ["attach", "-p", target.pid]):
            done = molt(*verb)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(f"process {os.getpid()} traces it (a debugger, strace); end that first",
                          done.stdout + done.stderr)
        # Whom to detach from has to be stopped.
        os.kill(target.pid, signal.SIGSTOP)
        os.waitpid(target.pid, 0)
        self.assertIn("it is stopped", molt("doctor", target.pid).stdout)
        self.assertEqual(libc.ptrace(detach, target.pid, None, None), 0)
        self.full_service(target)

    def freezers(self):
        """Groups of both versions, made for this test: each with the file that freezes it, and what to write there."""
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields, _, kind = line.partition(" - ")
            root = Path(fields.split()[4])
            if kind.startswith("cgroup2 "):
                file, words = "cgroup.freeze", ("1", "0")
            elif kind.startswith("cgroup ") and "freezer" in kind.split()[-1].split(","):
                file, words = "freezer.state", ("FROZEN", "THAWED")
            else:
                continue
            group = root / f"molt-test-{os.getpid()}"
            with contextlib.suppress(OSError):
                group.mkdir()
                self.addCleanup(group.rmdir)
                if os.access(group / file, os.W_OK):
                    yield group / file, words

    def test_frozen(self):
        """As a paused container is: refused at once, and told what lets it go on."""
        freezers = list(self.freezers())
        if not freezers:
            self.skipTest("needs a control group of its own")
        for file, (frozen, thawed) in freezers:
            with self.subTest(file):
                target = self.start("sleeper")
                below = file.parent / "below"
                below.mkdir()
                (below / "cgroup.procs").write_text(str(target.pid))
                remedy = f"echo {thawed} >{file}"
                try:
                    for is_there in (False, True):
                        file.write_text(frozen)
                        begin = time.monotonic()
                        if not is_there:
                            self.refuses(5, f"cannot be attached to: it is frozen, as a paused container is; let it go on: "
                                         f"{remedy}\n", "doctor", target.pid)
                            for verb in (["attach"], ["load", MODULE]):
                                self.refuses(1, remedy, *verb, "-p", target.pid)
                        else:
                            self.refuses(5, f"does not answer: it is frozen, as a paused container is; let it go on: {remedy}\n",
                                         "doctor", target.pid)
                            for verb in (["list"], ["load", MODULE]):
                                self.refuses(6, f"is frozen; let it go on: {remedy}\n", *verb, "-p", target.pid)
                        self.assertLess(time.monotonic() - begin, 5)
                        subprocess.run(["sh", "-c", remedy], check=True)
                        self.does("attach", "-p", target.pid)
                    self.full_service(target)
                finally:
                    file.write_text(thawed)
                    target.kill()
                    below.rmdir()

    def test_has_ended(self):
        """Not waited for yet by who started it."""
        target = self.start("sleeper")
        target.kill_only()
        os.waitid(os.P_PID, target.pid, os.WEXITED | os.WNOWAIT)
        self.refuses(5, "it has ended already", "doctor", target.pid)

    def test_filter_that_allows_just_what_is_needed(self):
        """And kills for anything else: so what filters are asked about is all that is done."""
        if os.geteuid() != 0:
            self.skipTest("needs root, who may read a filter")
        numbers = subprocess.run([Path(MOLT).with_name("attach_many"), "calls"], capture_output=True, text=True,
                                 check=True).stdout.split()
        target = self.start("sleeper", "only", *numbers)
        self.does("doctor", target.pid)
        self.does("attach", "-p", target.pid)
        self.does("load", "-p", target.pid, MODULE)
        self.does("audit", "-p", target.pid, "plain")
        self.does("blocking", "-p", target.pid, "plain")
        self.does("unload", "-p", target.pid, "plain")
        self.does("detach", "-p", target.pid)
        self.does("attach", "-p", target.pid)
        self.full_service(target)

    def test_filter_that_cannot_be_read(self):
        if os.geteuid() != 0:
            self.skipTest("needs root to become somebody else")
        folder = self.folder()
        program = shutil.copy(MOLT, folder)
        target = Target(self, [*NOBODY, shutil.copy(TARGETS / "sleeper", folder), "filtered"])
        for verb in (["doctor", str(target.pid)], ["attach", "-p", str(target.pid)]):
            done = subprocess.run([*NOBODY, program, *verb], capture_output=True, text=True,
                                  env=dict(os.environ, MOLT_RUNTIME=str(attach_test.RUNTIME)))
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("be root", done.stdout + done.stderr)
        self.full_service(target)

    def test_what_each_verb_needs(self):
        target = self.start("sleeper", "deaf")
        # It says that it is ready before it sleeps.
        end = time.monotonic() + 20
        while Path(f"/proc/{target.pid}/syscall").read_text().split()[0] != "0":
            self.assertLess(time.monotonic(), end)
            time.sleep(0.005)  # tidy: sleep-ok between two looks, bounded
        told = self.does("doctor", target.pid)
        self.assertRegex(told, f"attach: yes, through thread {target.pid} .sleeper., which sleeps in a plain system call")
        self.assertIn("modules: yes\n", told)
        self.assertIn("hooks and patches of libraries: yes, 1 thread blocks SIGTRAP (sleeper): each is stopped", told)
        self.does("attach", "-p", target.pid)
        self.assertNotIn("attach: yes", self.does("doctor", target.pid))
        self.assertEqual(target.end(), ("ok", 0))
        if os.geteuid() == 0:
            server = subprocess.Popen(["memcached", "-u", "memcache", "-l", "127.0.0.1", "-p", "0", "-U", "0"],
                                      stdin=subprocess.DEVNULL)
            self.addCleanup(server.wait)
            self.addCleanup(server.terminate)
            end = time.monotonic() + 20
            while Path(f"/proc/{server.pid}/status").read_text().split("\nUid:")[1].split()[0] == "0":
                self.assertLess(time.monotonic(), end)
                time.sleep(0.005)  # tidy: sleep-ok between two looks, bounded
            self.assertIn("modules: yes, it gave up its privileges and may not look at its own threads: root opens",
                          self.does("doctor", server.pid))

    def test_musl(self):
        compiler = shutil.which("musl-gcc")
        if not compiler:
            self.skipTest("needs musl-tools")
        folder = self.folder()
        source = folder / "other.c"
        source.write_text('#include <stdio.h>\nint main(void) { puts("ready"); fflush(stdout); getchar(); puts("ok"); }\n')
        subprocess.run([compiler, "-o", folder / "other", source], check=True)
        target = Target(self, [folder / "other"])
        for arguments in (["doctor", target.pid], ["attach", "-p", target.pid], ["load", "-p", target.pid, MODULE]):
            self.refuses(5, "its C library is musl", *arguments)
        self.assertEqual(target.end(), ("ok", 0))

    def test_other_architecture(self):
        folder = self.folder()
        program = folder / "thirty_two"
        source = Path(__file__).with_name("targets") / "thirty_two.S"
        subprocess.run(["cc", "-m32", "-nostdlib", "-static", "-o", program, source], check=True)
        try:
            target = Target(self, [program])
        except OSError as error:
            self.skipTest(f"this kernel runs no 32-bit programs: {error}")
        for arguments in (["doctor", target.pid], ["attach", "-p", target.pid]):
            self.refuses(5, "not an x86-64 program", *arguments)
        self.assertEqual(target.end(), ("ok", 0))


if __name__ == "__main__":
    unittest.main()
