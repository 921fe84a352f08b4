#!/usr/bin/env python3
"""completion/molt.bash in a bash of its own: what it offers for a line typed so far."""
import subprocess
import unittest
from pathlib import Path

from fake import MOLT, MoltTest
from verbs_test import AUDIT, LIMITER

SCRIPT = Path(__file__).parents[2] / "completion" / "molt.bash"
ASK = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _molt; printf "%s\\n" "${COMPREPLY[@]}"'
LISTING = {"molt.List": {"reply": {"schema": 1, "modules": [LIMITER, AUDIT], "resident": []}}}


class Completion(MoltTest):
    def offers(self, *words):
        """For `molt WORD...`, of which the last one is being typed."""
        done = subprocess.run(["bash", "-c", ASK, "bash", SCRIPT, MOLT, *words], check=True,
                              capture_output=True, text=True, cwd=self.directory)
        self.assertEqual(done.stderr, "")
        return done.stdout.split()

    def test_verbs(self):
        self.assertEqual(self.offers("un"), ["unload"])
        self.assertEqual(self.offers("hook", ""), ["list", "order"])
        self.assertLess({"ps", "load", "hook", "help"}, set(self.offers("")))

    def test_options(self):
        self.assertEqual(self.offers("unload", "--r"), ["--resident"])
        self.assertEqual(self.offers("hook", "order", "--res"), ["--reset"])
        self.assertLess({"-p", "--pid", "--timeout", "--probe"}, set(self.offers("load", "-")))

    def test_values_of_options(self):
        self.assertEqual(self.offers("wait", "x", "--for", "g"), ["gone"])
        self.assertEqual(self.offers("list", "--timeout", ""), [])

    def test_pids(self):
        process = self.fake({"molt.GetInfo": {"reply": {"schema": 1, "pid": 1}}})
        self.assertIn(process.pid, self.offers("list", "-p", ""))

    def test_modules(self):
        process = self.fake(LISTING)
        self.assertEqual(self.offers("-p", process.pid, "unload", ""), ["limiter", "audit"])
        self.assertEqual(self.offers("unload", "-p", process.pid, "a"), ["audit"])

    def test_hooks(self):
        hooks = [{"name": "files.open", "callbacks": []}]
        process = self.fake({**LISTING, "molt.HookList": {"reply": {"schema": 1, "hooks": hooks}}})
        self.assertEqual(self.offers("hook", "order", "-p", process.pid, ""), ["files.open"])
        self.assertEqual(self.offers("hook", "order", "-p", process.pid, "files.open", "l"),
                         ["limiter"])

    def test_attributes(self):
        nodes = [{"path": "host/name", "kind": "attribute", "mode": "0444", "value": "x"}]
        process = self.fake({"molt.Tree": {"reply": {"schema": 1, "nodes": nodes}}})
        self.assertEqual(self.offers("get", "-p", process.pid, "host/"), ["host/name"])

    def test_names_are_not_expanded(self):
        process = self.fake({"molt.List": {"reply": {
            "schema": 1, "resident": [], "modules": [{**LIMITER, "name": "$(touch here)"}]}}})
        self.assertEqual(self.offers("unload", "-p", process.pid, ""), ["$(touch", "here)"])
        self.assertFalse(Path(self.directory, "here").exists())

    def test_files(self):
        self.file("limiter.so")
        self.assertEqual(self.offers("load", "lim"), ["limiter.so"])


if __name__ == "__main__":
    unittest.main()
