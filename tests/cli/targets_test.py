#!/usr/bin/env python3
"""Which processes a verb is for, and what is said when one of several cannot."""
import json
import os
import signal
import socket
import subprocess
import sys
import unittest
from pathlib import Path

from fake import MOLT, Fake, MoltTest

VALUE = {"molt.Get": {"reply": {"schema": 1, "value": "7"}}}
MISSING = {"errno": "ENOENT", "code": 2, "class": "missing", "message": "no such attribute"}
INFO = {"schema": 1, "pid": 1, "name": "server", "exe": "/bin/server", "version": "0.1.0", "abi": 1,
        "started_ms": 0, "taint": "F", "locked": False, "poisoned": "", "membarrier": True,
        "modules": 2, "hooks": 3, "threads": 4, "operation": ""}


class Targets(MoltTest):
    def test_without_a_target_the_candidates_are_named(self):
        process = self.fake(VALUE)
        self.assertIn(f"{process.pid} (python3", self.complaint("get", "host/name", code=2))

    def test_several_pids(self):
        one, two = self.fake(VALUE), self.fake(VALUE)
        out = self.output("get", "host/name", "-p", one.pid, "-p", two.pid)
        self.assertEqual(sorted(out.splitlines()), sorted([f"{one.pid}: 7", f"{two.pid}: 7"]))
        both = self.json("get", "host/name", "-p", f"{one.pid},{two.pid}")
        self.assertEqual([answer["pid"] for answer in both], sorted([int(one.pid), int(two.pid)]))

    def test_partly_done(self):
        one, two = self.fake(VALUE), self.fake({"molt.Get": {"error": MISSING}})
        out, err = self.molt("get", "x", "-p", one.pid, "-p", two.pid, code=7)
        self.assertEqual((out, err), (f"{one.pid}: 7\n", f"molt: {two.pid}: no such attribute\n"))

    def test_all_failed_alike(self):
        one, two = (self.fake({"molt.Get": {"error": MISSING}}) for _ in range(2))
        out, err = self.molt("get", "x", "-p", one.pid, "-p", two.pid, code=3)
        self.assertEqual((out, len(err.splitlines())), ("", 2))

    def test_tree_selects_what_is_below(self):
        one, two = self.fake(VALUE), self.fake(VALUE)
        answers = self.json("get", "host/name", "--tree", str(os.getpid()))
        self.assertEqual({answer["pid"] for answer in answers}, {int(one.pid), int(two.pid)})

    def test_name_and_exe(self):
        process = self.fake({**VALUE, "comm": "molt-fake-name"})
        self.assertEqual(self.output("get", "host/name", "--name", "molt-fake-name"),
                         f"{process.pid}: 7\n")
        # Other tests' processes are of the same program, and may answer what they like: the exit code says that.
        done = subprocess.run([MOLT, "get", "host/name", "--exe", sys.executable, "--json"], capture_output=True,
                              text=True, timeout=50)
        answers = {answer["pid"]: answer for answer in json.loads(done.stdout)}
        self.assertEqual(answers[int(process.pid)]["value"], "7", done.stderr)

    def test_nothing_is_selected(self):
        self.complaint("get", "host/name", "--name", "no such name", code=3)
        self.complaint("get", "host/name", "--tree", "4194304", code=3)

    def test_no_such_process(self):
        ended = subprocess.Popen(["true"])
        ended.wait()
        self.assertIn("there is no process", self.complaint("list", "-p", str(ended.pid), code=3))

    def test_process_without_molt(self):
        self.assertIn("does not use Molt", self.complaint("list", "-p", str(os.getpid()), code=3))

    def test_thread_id_stands_for_its_process(self):
        process = self.fake({**VALUE, "molt.List": {"hang": True}})
        waiting = subprocess.Popen([os.environ["MOLT_BIN"] + "/molt", "list", "-p", process.pid],
                                   stderr=subprocess.DEVNULL)
        self.addCleanup(waiting.wait)
        self.addCleanup(waiting.kill)
        process.process.stdout.readline()  # the request has come, and a thread serves it
        threads = os.listdir(f"/proc/{process.pid}/task")
        other = next(thread for thread in threads if thread != process.pid)
        self.assertEqual(self.output("get", "host/name", "-p", other), "7\n")

    def test_program_that_was_executed_over_it(self):
        process = self.fake({"deaf": True})
        while Path("/proc", process.pid, "comm").read_text() != "cat\n":
            pass
        self.assertIn("does not listen", self.complaint("list", "-p", process.pid, code=3))
        self.assertNotIn(process.pid, self.output("ps"))

    def test_socket_of_another_process_is_not_taken(self):
        sleeper = subprocess.Popen(["cat"], stdin=subprocess.PIPE,
                                   env={**os.environ, "MOLT_DIRECTORY": self.directory})
        self.addCleanup(sleeper.wait)
        self.addCleanup(sleeper.stdin.close)
        folder = Path(self.directory, "molt", str(sleeper.pid))
        folder.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "control"))
            listener.listen()
            self.assertIn(f"that of process {os.getpid()}",
                          self.complaint("list", "-p", str(sleeper.pid), code=3))

    @unittest.skipUnless(os.getuid() == 0, "needs root to become another user")
    def test_processes_of_others_are_refused(self):
        process = self.fake(VALUE)
        os.chmod(self.directory, 0o700)
        done = subprocess.run([os.environ["MOLT_BIN"] + "/molt", "list", "-p", process.pid],
                              user=65534, group=65534, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 4, done.stderr)
        self.assertIn("belongs to root", done.stderr)


class Ps(MoltTest):
    def row(self, process, *arguments):
        rows = [line.split(maxsplit=6) for line in self.output("ps", *arguments).splitlines()]
        self.assertEqual(rows[0], ["PID", "NAME", "VERSION", "MODULES", "HOOKS", "TAINT", "STATE"])
        return next(row for row in rows if row[0] == process.pid)

    def test_ps(self):
        process = self.fake({"molt.GetInfo": {"reply": INFO}})
        self.assertEqual(self.row(process, "-p", process.pid),
                         [process.pid, "server", "0.1.0", "2", "3", "F", "ok"])

    def test_ps_json(self):
        process = self.fake({"molt.GetInfo": {"reply": INFO}})
        answer = self.json("ps", "-p", process.pid)
        self.assertEqual((answer["schema"], answer["verb"]), (1, "ps"))
        want = {**INFO, "pid": int(process.pid)}
        del want["schema"]
        self.assertEqual(want.items() - answer["processes"][0].items(), set())

    def test_ps_states(self):
        for field, value, state in (("locked", True, "locked"),
                                    ("operation", "loading limiter", "loading limiter"),
                                    ("poisoned", "slot count", "poisoned: slot count")):
            process = self.fake({"molt.GetInfo": {"reply": {**INFO, field: value}}})
            self.assertEqual(self.row(process, "-p", process.pid)[6], state)

    def test_ps_does_not_wait_for_a_stopped_process(self):
        good = self.fake({"molt.GetInfo": {"reply": INFO}})
        stopped = self.fake({})
        os.kill(stopped.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, stopped.process.pid, os.WSTOPPED | os.WNOWAIT)
        selected = ["-p", good.pid, "-p", stopped.pid, "--timeout", "1.5"]
        self.assertEqual(self.row(good, *selected)[6], "ok")
        self.assertIn("is stopped", " ".join(self.row(stopped, *selected)))

    def test_ps_of_nothing(self):
        self.molt("ps", "--name", "no such name", code=3)


if __name__ == "__main__":
    unittest.main()
