#!/usr/bin/env python3
"""A host, modules and the command line as a user has them, all real."""
import json
import os
import subprocess
import tempfile
import threading
import time
import unittest

BIN = os.environ["MOLT_BIN"]
MODULES = os.environ["MOLT_USER_MODULES"]


class User(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.environment = dict(os.environ, MOLT_DIRECTORY=self.folder.name)
        self.host = subprocess.Popen([BIN + "/user_host"], stdin=subprocess.PIPE, text=True,
                                     stdout=subprocess.PIPE, env=self.environment)
        self.assertEqual(self.host.stdout.readline(), "ready\n")

    def tearDown(self):
        self.host.stdin.close()
        self.host.stdout.close()
        self.assertEqual(self.host.wait(timeout=30), 0, "the host did not survive")
        self.folder.cleanup()

    def run_molt(self, *words):
        return subprocess.run([BIN + "/molt", "-p", str(self.host.pid), *words], text=True,
                              capture_output=True, env=self.environment, timeout=60)

    def molt(self, *words, code=0):
        """What it prints on stdout, and on stderr."""
        done = self.run_molt(*words)
        self.assertEqual(done.returncode, code, done.stderr)
        return done.stdout.rstrip("\n"), done.stderr.rstrip("\n")

    def json(self, *words, code=0):
        return json.loads(self.molt("--json", *words, code=code)[0])

    def ask(self, number):
        self.host.stdin.write(f"{number}\n")
        self.host.stdin.flush()
        return int(self.host.stdout.readline())

    def file(self, module):
        return f"{MODULES}/{module}.so"

    def parameter(self, name, value):
        """Sets it, and what it is then."""
        path = f"modules/params/parameters/{name}"
        self.molt("set", path, "--", value)
        return self.molt("get", path)[0]

    def test_doctor_tells_of_a_lock(self):
        self.assertIn("modules: yes", self.molt("doctor", str(self.host.pid))[0])
        self.molt("set", "host/locked", "1")
        self.assertIn("cannot be changed: loading and unloading are locked until it restarts",
                      self.molt("doctor", str(self.host.pid), code=5)[0])

    def test_warnings_reach_who_asked(self):
        text = "params: unknown parameter 'nosuch' ignored"
        self.assertEqual(self.molt("load", self.file("params"), "whole=2", "nosuch=1"),
                         ("", "molt: " + text))
        self.assertEqual(self.ask(4), 8)
        self.assertIn(text, self.molt("events")[0])
        self.molt("unload", "params")
        answer = self.json("load", self.file("params"), "whole=3", "nosuch=1")
        self.assertEqual(answer["warnings"], ["unknown parameter 'nosuch' ignored"])
        # The same file again is no failure, but its parameters are not what was asked for.
        answer = self.json("load", self.file("params"), "whole=9")
        self.assertTrue(answer["already"])
        self.assertIn("whole=9", answer["warnings"][0])
        self.assertEqual(self.ask(4), 12)
        answer = self.json("replace", self.file("params"), "other=3")
        self.assertEqual(answer["warnings"], ["unknown parameter 'other' ignored"])
        self.assertEqual(self.molt("-q", "replace", self.file("params"), "other=3"), ("", ""))

    def test_parameters_of_each_type(self):
        self.molt("load", self.file("params"))
        self.assertEqual(self.parameter("whole", "-5"), "-5")
        self.assertEqual(self.parameter("whole", "+5"), "5")
        self.assertEqual(self.parameter("whole", "0x1F"), "31")
        self.assertEqual(self.parameter("natural", "4294967295"), "4294967295")
        self.assertEqual(self.parameter("large", "-9223372036854775808"), "-9223372036854775808")
        self.assertEqual(self.parameter("larger", "18446744073709551615"), "18446744073709551615")
        self.assertEqual(self.parameter("flag", "on"), "Y")
        self.assertEqual(self.parameter("real", "-2.5e3"), "-2500")
        self.assertEqual(self.parameter("words", 'a "b"  c'), 'a "b"  c')
        self.assertEqual(self.parameter("words", ""), "")
        long = "abcdefgh" * 1250
        self.assertEqual(self.parameter("words", long), long)
        self.assertEqual(self.parameter("small", "-32768"), "-32768")
        self.assertEqual(self.parameter("tiny", "0xff"), "255")
        self.assertEqual(self.parameter("rough", "0.25"), "0.25")
        types = {p["name"]: p["type"] for p in self.json("info", "params")["parameters"]}
        self.assertEqual([types[name] for name in ("whole", "natural", "large", "larger", "flag", "real",
                                                   "small", "tiny", "rough", "huge", "words")],
                         ["int", "uint", "long", "ulong", "bool", "double",
                          "short", "byte", "float", "long", "string"])
        for name, value in (("whole", "2147483648"), ("small", "32768"), ("tiny", "256"),
                            ("tiny", "0x100"), ("whole", ""), ("whole", "5x"),
                            ("whole", "0x"), ("whole", "0x@"), ("whole", "0x-5"), ("whole", "+-5"),
                            ("natural", "-1"), ("flag", "maybe"), ("real", "1.5.")):
            path = f"modules/params/parameters/{name}"
            before = self.molt("get", path)
            self.assertIn("invalid", self.molt("set", path, "--", value, code=1)[1])
            self.assertEqual(self.molt("get", path), before)
        self.molt("set", "modules/params/parameters/fixed", "4", code=4)

    def test_parameter_functions_are_alone(self):
        self.molt("load", self.file("params"))
        path = "modules/params/parameters/alone"
        calls = [("set", path, "1"), ("get", path), ("info", "params")] * 4
        threads = [threading.Thread(target=self.run_molt, args=call) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(self.molt("get", path)[0], "1")

    def test_a_parameter_cannot_unload_its_module(self):
        self.molt("load", self.file("params"))
        self.molt("set", "modules/params/parameters/leave", "1", code=1)
        self.assertEqual(self.ask(4), 4)
        self.molt("unload", "params")

    def test_dry_runs_say_what_would_happen(self):
        # The same verdict as the real thing, and nothing is different after it.
        for module, code, words in (("wrong_type", 5, "misfit: hook app/ask: the module expects"),
                                    ("no_hook", 5, "Unknown hook app/none"),
                                    ("no_symbol", 5, "Unknown symbol nobody_has_it"),
                                    ("no_hook_needed", 0, "")):
            dry = self.molt("load", "-n", self.file(module), code=code)
            real = self.molt("load", self.file(module), code=code)
            self.assertEqual(dry[1], real[1])
            self.assertIn(words, real[1])
        self.molt("unload", "misfit")
        self.assertEqual(self.molt("load", "-n", self.file("params"), "nosuch=1"),
                         ("params: would be loaded",
                          "molt: params: unknown parameter 'nosuch' ignored"))
        self.assertEqual(self.json("list")["modules"], [])

        self.molt("load", self.file("state_1"))
        self.molt("replace", "-n", self.file("state_2"))
        dry = self.molt("replace", "-n", self.file("state_3"), code=5)
        self.assertEqual(self.molt("replace", self.file("state_3"), code=5), dry)
        self.assertIn("understands state versions 3 to 3", dry[1])
        self.molt("replace", "-n", "--force", self.file("state_1"))
        self.molt("unload", "-n", "stateful")
        self.molt("unload", "stateful")

    def test_a_dry_unload_names_whom_it_would_wait_for(self):
        self.molt("load", self.file("waits"), "open=0")
        self.assertEqual(self.molt("unload", "-n", "waits")[0], "waits: would be unmapped")
        self.host.stdin.write("5\n")
        self.host.stdin.flush()
        end = time.monotonic() + 20
        while "after" not in (said := self.molt("unload", "-n", "waits")[0]):
            self.assertLess(time.monotonic(), end, said)
        self.assertEqual(said, "waits: would be unmapped, after a wait for thread "
                               f"{self.host.pid} (user_host) in hook app/ask")
        self.molt("set", "modules/waits/parameters/open", "1")
        self.assertEqual(self.host.stdout.readline(), "5\n")
        self.assertEqual(self.molt("unload", "-n", "--resident", "waits")[0],
                         "waits: would be resident")
        self.assertEqual(self.molt("replace", "-n", self.file("waits"))[0], "waits: would be 1 -> 1")
        self.molt("unload", "waits")

    def test_a_replacement_that_nobody_waits_for_is_taken_back(self):
        self.molt("load", self.file("waits"), "open=0")
        asking = subprocess.Popen([BIN + "/molt", "-p", str(self.host.pid), "replace",
                                   self.file("waits")], env=self.environment)
        end = time.monotonic() + 20
        while "waits: saves" not in self.molt("events")[0]:
            self.assertLess(time.monotonic(), end)
        asking.kill()
        asking.wait()
        self.molt("set", "modules/waits/parameters/open", "1")
        self.molt("wait", "--timeout", "20")
        self.assertNotIn("waits: replaced", self.molt("events")[0])
        self.assertEqual(self.ask(5), 5)
        self.molt("replace", self.file("waits"))
        self.assertIn("waits: replaced", self.molt("events")[0])

    def test_each_of_several_versions_can_be_looked_at(self):
        self.molt("load", self.file("params"))
        self.molt("unload", "--resident", "params")
        self.molt("load", self.file("params"))
        self.assertNotIn("resident", self.json("blocking", "params")["state"])
        left = [n["path"].split("/")[1] for n in self.json("tree", "resident")["nodes"]
                if n["path"].count("/") == 1]
        self.assertEqual(len(left), 1, left)
        self.assertEqual(self.json("blocking", left[0])["state"], "resident")
        self.molt("unload", "params")
        self.assertEqual(self.molt("get", "host/last_unloaded")[0], "params")

    def test_what_stays_for_good_is_told(self):
        self.molt("load", self.file("stays"))
        said = self.molt("unload", "stays")[1]
        self.assertIn("stays: unloaded, but its memory stays: ", said)
        self.assertTrue(said.endswith("; nothing but the end of the process frees it"), said)
        self.molt("load", self.file("stays"))
        answer = self.json("unload", "stays")
        self.assertEqual((answer["result"], answer["for_good"]), ("pinned", True))
        self.assertIn("out of Molt's hands: ", self.molt("audit", "stays", code=1)[1])

    def test_a_failed_load_tells_what_it_left(self):
        self.assertEqual(self.molt("load", self.file("stays"), "answer=-5", code=1)[1],
                         "molt: stays: init failed: EIO; its memory stays: `molt list` tells why")
        self.assertEqual([r["name"] for r in self.json("list")["resident"]], ["stays"])

    def test_an_init_that_throws(self):
        said = self.molt("load", self.file("waits"), "throws=1", code=1)[1]
        self.assertTrue(said.startswith(
            "molt: waits: init failed: ECANCELED; if it threw, `molt events` has what"), said)
        self.assertIn("waits: init threw no luck today", self.molt("events")[0])

    def test_what_gc_unloads_is_in_the_log(self):
        self.molt("load", self.file("provider"))
        self.molt("load", self.file("user"))
        self.assertEqual(self.molt("gc")[0], "")
        self.molt("unload", "user")
        # It looks once: on a busy machine the memory may stay for the time being.
        self.assertIn("provider: ", self.molt("gc")[0])
        self.assertEqual(self.json("list")["modules"], [])
        self.assertIn("provider: unloaded: nothing needs it any more", self.molt("events")[0])

    def test_a_wait_that_is_given_up_says_for_what(self):
        said = self.molt("wait", "nobody", "--timeout", "0.05", code=6)[1]
        self.assertIn("gave up waiting until nobody is live; ", said)

    def keep_stale_word(self, module):
        """A thread sleeps, with an address in the module in a frame, by which nothing returns."""
        name = self.json("info", module)["store"]
        with open(f"/proc/{self.host.pid}/maps", encoding="ascii") as maps:
            text = next(line for line in maps if name in line and " r-x" in line)
        address = int(text.split("-")[0], 16) + 0x123
        self.ask(f"keep {address ^ (2**64 - 1)}")

    def test_unwinding_tells_a_stale_word_from_a_frame(self):
        self.molt("load", self.file("params"))
        self.keep_stale_word("params")
        self.assertIn("a stale word, no frame returns there", self.molt("blocking", "params")[0])
        # The process alone cannot know, the command line tells it.
        self.assertEqual(self.json("unload", "params")["result"], "unmapped")
        self.ask("drop")

    def test_gc_unwinds_too(self):
        self.molt("load", self.file("params"))
        self.keep_stale_word("params")
        self.assertEqual(self.json("unload", "params", "--timeout", "0")["result"], "resident")
        # It looks once: a thread that happens to run then is not proven out.
        end = time.monotonic() + 20
        while (said := self.json("gc"))["freed"] != ["params"]:
            self.assertLess(time.monotonic(), end, said)
        self.ask("drop")

    def test_failures_name_the_file(self):
        name = self.folder.name + "/no-module.so"
        for content in (b"", b"garbage"):
            with open(name, "wb") as file:
                file.write(content)
            self.assertIn(name, self.molt("load", name, code=5)[1])

    def test_a_look_does_not_keep_what_failed(self):
        results = []
        loader = threading.Thread(
            target=lambda: results.append(self.run_molt("load", self.file("seen_failing"))))
        loader.start()
        while "seen_failing" not in self.molt("list")[0]:
            pass
        self.molt("info", "seen_failing")
        loader.join()
        self.assertEqual(results[0].returncode, 1, results[0].stderr)
        answer = self.json("list")
        self.assertEqual((answer["modules"], answer["resident"]), ([], []))


if __name__ == "__main__":
    unittest.main()
