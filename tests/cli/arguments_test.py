#!/usr/bin/env python3
"""What is refused before any process is asked."""
import os
import subprocess
import unittest

from fake import MOLT, MoltTest


class Arguments(MoltTest):
    def test_usage(self):
        for arguments in ([], ["lost"], ["hook"], ["hook", "lost"], ["load"], ["unload"], ["get"],
                          ["list", "--lost"], ["--lost"], ["list", "surplus", "-p", "1"],
                          ["list", "-p", "x"], ["list", "-p", "0"], ["list", "-p"],
                          ["list", "--timeout", "nan"], ["list", "--timeout", "-1"],
                          ["hook", "order", "a"], ["hook", "order", "a", "b", "c"],
                          ["hook", "order", "--all-hooks", "a", "b"], ["wait", "--for", "live"],
                          ["help", "lost"], ["events", "--since", "x"]):
            with self.subTest(arguments):
                self.complaint(*arguments, code=2)

    def test_values_in_words(self):
        for arguments, words in ((["events", "--since"], "events: --since needs a value"),
                                 (["wait", "a", "--for"], "wait: --for needs a value"),
                                 (["list", "--timeout", "x"], "list: --timeout = x is no number"),
                                 (["-p"], "--pid needs a value")):
            self.assertTrue(self.complaint(*arguments, code=2).startswith(words + "; see `molt help"))

    def test_usage_as_json(self):
        answer = self.json("list", "--lost", code=2)
        self.assertEqual((answer["schema"], answer["verb"], answer["error"]["class"]),
                         (1, "list", "usage"))

    def test_modules_may_have_the_names_of_verbs(self):
        reply = {"schema": 1, "name": "list", "result": "unmapped", "reason": "", "drain_us": 0}
        process = self.fake({"molt.Unload": {"reply": reply}})
        self.quiet("unload", "list", "-p", process.pid)

    def test_options_before_the_verb(self):
        process = self.fake({"molt.Get": {"reply": {"schema": 1, "value": "7"}}})
        self.assertEqual(self.output("-p", process.pid, "get", "host/name"), "7\n")

    def test_files(self):
        fifo = self.directory + "/fifo"
        os.mkfifo(fifo)
        for path, code in ((self.directory + "/none.so", 3), (self.directory, 2), (fifo, 2),
                           ("/dev/null", 2)):
            with self.subTest(path):
                self.complaint("load", path, "-p", str(os.getpid()), code=code)

    def test_load_words(self):
        a, b = self.file("a.so"), self.file("b.so")
        self.complaint("load", a, b, "-p", "1", code=2)
        self.complaint("load", "--probe", a, b, "limit=1", "-p", "1", code=2)
        self.complaint("load", "limit=1", "-p", "1", code=2)
        for value in ('a "b"', 'a"b"'):
            self.complaint("load", a, "x=" + value, "-p", "1", code=2)
        self.complaint("replace", "a", "b", a, "-p", "1", code=2)

    def test_request_that_is_too_long(self):
        process = self.fake({})
        self.complaint("get", "x" * 66_000, "-p", process.pid, code=2)

    @unittest.skipUnless(os.path.exists("/dev/full"), "needs /dev/full")
    def test_output_that_cannot_be_written(self):
        with open("/dev/full", "w", encoding="ascii") as full:
            done = subprocess.run([MOLT, "help"], stdout=full, stderr=subprocess.PIPE, check=False)
        self.assertEqual((done.returncode, done.stderr[:28]), (1, b"molt: cannot write the outpu"))


if __name__ == "__main__":
    unittest.main()
