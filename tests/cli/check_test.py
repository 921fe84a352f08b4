#!/usr/bin/env python3
"""`molt check` and `molt info FILE` on module files that a process need not load for that."""
import os
import unittest
from pathlib import Path

from fake import MoltTest

SAMPLES = Path(os.environ.get("MOLT_SAMPLES", "."))


class Check(MoltTest):
    def sample(self, name):
        return str(SAMPLES / f"cli_sample_{name}.so")

    def findings(self, name):
        file = self.json("check", self.sample(name), code=5)["files"][0]
        self.assertFalse(file["ok"])
        return [(finding["kind"], finding["symbol"]) for finding in file["findings"]]

    def test_good_module(self):
        self.quiet("check", self.sample("good"))
        self.assertEqual(self.output("check", "-v", self.sample("good")),
                         self.sample("good") + ": OK\n")

    def test_unique_symbols_are_named_as_in_the_source(self):
        self.assertIn(("unique_symbol", "counter()::value"), self.findings("unique"))

    def test_thread_local_destructors(self):
        self.assertIn(("thread_local_destructor", "last_path[abi:cxx11]"),
                      self.findings("thread_local"))
        _, err = self.molt("check", self.sample("thread_local"), code=5)
        self.assertIn("__cxa_thread_atexit", err)

    def test_nodelete(self):
        self.assertEqual(self.findings("nodelete"), [("nodelete", "")])

    def test_missing_descriptor(self):
        self.assertEqual(self.findings("no_descriptor"), [("no_descriptor", "molt_this_module")])

    def test_other_molt(self):
        self.assertEqual([kind for kind, _ in self.findings("other_abi")], ["abi", "magic"])

    def test_other_files(self):
        for content in ("", "text", "\x7fELF"):
            with self.subTest(content):
                path = self.file("odd.so", content)
                out, err = self.molt("check", path, code=5)
                self.assertEqual(out, "")
                self.assertRegex(err, rf"\A{path}: [^\n]+\n\Z")
        self.molt("check", "/bin/sh", code=5)

    def test_a_line_for_each_finding_of_each_file(self):
        good, bad, missing = self.sample("good"), self.sample("nodelete"), self.directory + "/none"
        _, err = self.molt("check", good, missing, bad, code=5)
        self.assertEqual([line.split(":")[0] for line in err.splitlines()], [missing, bad])
        self.molt("check", good, missing, code=3)

    def test_info_of_a_file(self):
        out = self.output("info", self.sample("good"))
        for line in ("name:           good", "version:        1.2", "license:        MIT",
                     "description:    counts opens",
                     "parm:           limit:opens allowed: per client (int)",
                     "hook:           files.open i32(const char*,i32)"):
            self.assertIn(line + "\n", out)

    def test_info_of_a_file_as_json(self):
        answer = self.json("info", self.sample("good"))
        self.assertEqual((answer["schema"], answer["verb"], answer["name"]), (1, "info", "good"))
        self.assertEqual(answer["parameters"], [{"name": "limit", "type": "int",
                                                 "description": "opens allowed: per client"}])
        self.assertEqual(answer["callbacks"], [{"hook": "files.open",
                                                "signature": "i32(const char*,i32)"}])

    def test_info_of_what_is_no_module(self):
        self.complaint("info", self.sample("no_descriptor"), code=5)
        self.complaint("info", "/etc/passwd", code=5)
        self.complaint("info", "./none.so", code=3)


if __name__ == "__main__":
    unittest.main()
