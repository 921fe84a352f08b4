#!/usr/bin/env python3
"""What makes changing a running program hard, all of it at once and without a pause: recursion, sleeping
threads, red zones, exceptions, cancellation, thread-locals, the loader's and the allocator's locks, time-outs,
entries on two pages and behind an endbr64, the program's own trap handler, loops that close all descriptors."""
import json
import unittest

import attach_test
from attach_test import EXAMPLES, TARGETS

PATCH = TARGETS / "attach_hazards_patch.so"
ALL = 10


class Hazards(unittest.TestCase):
    start = attach_test.Attach.start
    does = attach_test.Attach.does

    def versions(self, target):
        target.tell("?\n")
        return target.line()

    def test_patched_and_reverted(self):
        target = self.start("hazards")
        self.assertEqual(self.versions(target), ["1"] * ALL)
        for _ in range(4):
            self.does("apply", "-p", target.pid, PATCH)
            self.assertEqual(self.versions(target), ["2"] * ALL)
            self.does("revert", "-p", target.pid, "hazards_patch")
            self.assertEqual(self.versions(target), ["1"] * ALL)
        self.assertEqual(target.end(), ("ok", 0))

    def test_hooked_meanwhile(self):
        target = self.start("hazards")
        for _ in range(3):
            self.does("load", "-p", target.pid, EXAMPLES / "count_opens.so")
            self.does("apply", "-p", target.pid, PATCH)
            self.does("unload", "-p", target.pid, "count_opens")
            self.assertEqual(self.versions(target), ["2"] * ALL)
            self.does("revert", "-p", target.pid, "hazards_patch")
        self.does("detach", "-p", target.pid)
        self.assertEqual(self.versions(target), ["1"] * ALL)
        self.assertEqual(target.end(), ("ok", 0))

    def test_close_all_loops(self):
        """They do not reach the agent's descriptors."""
        target = self.start("closer")
        self.does("attach", "-p", target.pid)
        for _ in range(20):
            self.does("list", "-p", target.pid)
            self.assertNotIn("error", json.loads(self.does("ps", "-p", target.pid, "--json"))["processes"][0])
        self.assertEqual(target.end(), ("ok", 0))

    def test_children_that_close_all(self):
        """Nor does a child have any of them, or of an operation that is under way."""
        target = self.start("closer", "children")
        for _ in range(10):
            self.does("load", "-p", target.pid, EXAMPLES / "count_opens.so")
            unloaded = json.loads(self.does("unload", "-p", target.pid, "count_opens", "--json"))
            self.assertEqual(unloaded["result"], "unmapped", unloaded)
        self.assertEqual(target.end(), ("ok", 0))


if __name__ == "__main__":
    unittest.main()
